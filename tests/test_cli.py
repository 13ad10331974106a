"""The command line: its verbs, its errors and what it imports."""

from __future__ import annotations

import inspect
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

import zfast
from zfast.cli.app import app, run
from zfast.cli.progress import StepProgress

_MAIN = "import sys; sys.argv[0] = 'zfast'; from zfast.cli import main; main()"


def run_zfast(
    *arguments: str, before: str = "", ends: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command, after some Python of the test's own; ``ends`` are a shell's redirections."""
    command = shlex.join([sys.executable, "-c", f"{before}\n{_MAIN}", *arguments])
    return subprocess.run(
        ["sh", "-c", f"{command} {ends}"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_help_names_the_verbs() -> None:
    done = run_zfast("--help")
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert done.stderr == ""


def verbs_of(tree: App, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The words that name each verb, and its docstring but for what it says of parameters."""
    for name in tree:
        if name.startswith("-"):
            continue
        if (command := tree[name].default_command) is None:
            yield from verbs_of(tree[name], *path, name)
        else:
            text = inspect.cleandoc(command.__doc__ or "").partition("\nParameters\n")[0]
            yield (*path, name), text.replace("``", "")


def test_the_help_of_a_verb_says_all_that_its_docstring_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verbs = dict(verbs_of(app))
    assert {("doctor",), ("store", "import"), ("store", "gc"), ("keys", "rotate")} <= verbs.keys()
    for words, text in verbs.items():
        assert run([*words, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert " ".join(text.split()) in shown, words


def test_without_a_verb_it_helps() -> None:
    done = run_zfast()
    assert done.returncode == 0
    assert "Usage: zfast COMMAND" in done.stdout


def test_version() -> None:
    done = run_zfast("--version")
    assert (done.returncode, done.stdout) == (0, f"{zfast.__version__}\n")


def test_help_of_demo_lists_its_options() -> None:
    done = run_zfast("demo", "--help")
    assert done.returncode == 0
    for option in ("--scale", "--workers", "--runner", "--input", "--output", "--json"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], 'Unknown command "dmeo"'),
        (["demo", "--sclae", "2"], "--sclae"),
        (["demo", "--scale", "0"], "Must be >= 1"),
        (["demo", "--scale", "-3"], "Must be >= 1"),
        (["demo", "--scale", "two"], "--scale"),
        (["demo", "--workers", "0"], "Must be >= 1"),
        (["demo", "--runner", "dask"], "Choose from"),
        (["demo", "--workers", "1.5"], "'1.5' is not a whole number"),
        (["worker", "ipc:///x", "-w", "1.5"], "'1.5' is not a whole number"),
        (["watch", "--count", "1.5"], "'1.5' is not a whole number"),
        (["metrics", "--port", "80.6"], "'80.6' is not a whole number"),
        (["ui", "--port", "1.4"], "'1.4' is not a whole number"),
        (["watch", "--kind", "foo"], 'Choose from: "task-run", "flow-run", "worker"'),
        (["bench", "--output", ""], "a path may not be empty"),
        (["demo", "--output", ""], "a path may not be empty"),
        (["store", "gc", "--budget", "foo"], "'foo' is not a size"),
    ],
)
def test_a_wrong_command_line_exits_2(arguments: list[str], message: str) -> None:
    done = run_zfast(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("cyclopts", "cli", ["--help"]),
        ("rich", "cli", ["--help"]),
        ("psutil", "cli", ["top", "--once"]),
        ("packaging", "cli", ["doctor"]),
        ("opentelemetry", "metrics", ["metrics"]),
        ("pydantic_settings", "security", ["status", "tcp://127.0.0.1:1"]),
        ("pydantic_settings", "security", ["worker", "tcp://127.0.0.1:1"]),
        ("pydantic_settings", "security", ["relay", "tcp://127.0.0.1:1"]),
        ("pydantic_settings", "security", ["keys", "list"]),
        ("jwt", "security", ["token", "check", "x"]),
    ],
)
def test_a_missing_extra_is_one_clear_line(package: str, extra: str, arguments: list[str]) -> None:
    done = run_zfast(*arguments, before=f"import sys; sys.modules[{package!r}] = None")
    assert done.returncode == 1
    assert done.stderr == (
        f"zfast: the command line needs {package}: pip install 'zfast[{extra}]'\n"
    )


def test_what_zfast_says_at_import_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFAST_CORE", "foo")
    done = run_zfast("status")
    assert done.returncode == 1
    assert done.stderr == "zfast: ZFAST_CORE=foo: it may be 'plain' or 'compiled'\n"


def test_an_import_that_fails_for_another_reason_is_no_matter_of_packages() -> None:
    done = run_zfast("status", before="import sys; sys.modules['zfast.addresses'] = None")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "import of zfast.addresses halted" in done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["status"], ["top", "--once"]])
@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_standard_stream_may_be_closed(arguments: list[str], descriptor: int) -> None:
    done = run_zfast(*arguments, ends=f"{descriptor}>&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == (descriptor == 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["status", "--json"], ["doctor"]])
def test_a_full_disk_under_the_output_is_one_clear_line(arguments: list[str]) -> None:
    done = run_zfast(*arguments, ends=">/dev/full")
    assert done.returncode == 1
    assert done.stderr == "zfast: cannot write the output: No space left on device\n"


def test_a_full_disk_elsewhere_is_told_as_what_it_is() -> None:
    fail = (
        "import zfast.cli.app as app\n"
        "def fail(): raise OSError(28, 'No space left on device', '/a/file')\n"
        "app.app.command(fail, name='fail')"
    )
    done = run_zfast("fail", before=fail)
    assert done.returncode == 1
    assert "No space left on device: '/a/file'" in done.stderr
    assert "the output" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_worker_goes_on_where_nobody_can_be_told() -> None:
    say = "from zfast.cli.worker import _say; _say('joined')"
    done = run_zfast("--version", before=say, ends=">/dev/full")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_has_gone_ends_a_verb_without_a_word() -> None:
    done = run_zfast("--help", ends="| true")
    assert (done.stdout, done.stderr) == ("", "")


def test_demo_without_its_packages_names_them() -> None:
    hide = (
        "import importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)"
    )
    done = run_zfast("demo", before=hide)
    assert done.returncode == 1
    assert "the demo needs matplotlib" in done.stderr
    assert "pip install 'zfast[demo]'" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    report = (
        "import atexit, sys; heavy = ('prefect', 'pandas', 'numpy', 'zmq', 'matplotlib');"
        "atexit.register(lambda: print('imported', [n for n in heavy if n in sys.modules]))"
    )
    done = run_zfast(*arguments, before=report)
    assert done.returncode == 0
    assert "imported []" in done.stdout


def test_an_error_of_ours_shows_message_detail_and_hint() -> None:
    fail = (
        "import zfast.cli.app as app; from zfast.errors import ConfigError\n"
        "def fail(): raise ConfigError('it [broke]', detail='the cause', hint='mend it')\n"
        "app.app.command(fail, name='fail')"
    )
    done = run_zfast("fail", before=fail)
    assert done.returncode == 1
    assert done.stderr == "zfast: it [broke]\nthe cause\nhint: mend it\n"


def test_progress_takes_no_name_for_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with StepProgress() as progress:
        progress.step("reading [a/b] and [/]")
        progress.update("half of [c]")
    assert "reading [a/b] and [/]: 0.0 s" in capsys.readouterr().err


def test_ctrl_c_exits_130() -> None:
    interrupt = (
        "import zfast.cli.app as app\n"
        "def stop(): raise KeyboardInterrupt\n"
        "app.app.command(stop, name='stop')"
    )
    done = run_zfast("stop", before=interrupt)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
