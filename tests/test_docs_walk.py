"""The documentation's commands, typed as they stand there by somebody who is new to it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from doc_pages import PAGES, SHELL_LANGUAGES, blocks, blocks_of, docs_page, joined_lines, sections
from network_hosts import WAIT_FOR_API, hosts

PROMPT = re.compile(r"^([a-z][\w-]*)\$ +", re.MULTILINE)
COMMAND = re.compile(r"^(zfast|python3?|pip|prefect|strace) ")
#: What goes on until it is ended.
LASTING = ("prefect server start", "zfast worker", "zfast relay", "zfast watch")
#: Pages and sections whose commands the tests below run.
WALKED = {
    ("two-hosts.md", ""),
    ("live-states.md", "Between hosts"),
    ("security.md", "One host, in a minute"),
    ("security.md", "Two hosts"),
    ("security.md", "Rotation and revocation"),
    ("security.md", "What is wrong?"),
    ("quickstart.md", "See it on your own machine"),
}
#: The others, and who runs them.
ELSEWHERE = {
    "pip install": "dev.py wheels",
    "python3 dev.py": ".ci/run and the workflows",
    "ZFAST_CORE=plain python3 dev.py": "test_plain_core.py",
    "strace": "needs strace; what it calls is run by test_docs.py",
    "zfast watch": "test_live_views.py",
    "zfast top": "test_live_views.py",
    "zfast ui": "test_live_views.py",
    "zfast worker tcp://flow-host:5560 --workers 8": "two-hosts.md, with fewer workers",
}
LISTENER = """
import signal
from zfast import Channel
from zfast.security.server_security import ServerSecurity
rx = Channel.bind("tcp://0.0.0.0:5555", security=ServerSecurity.load("prod"))
print("listens")
signal.pause()
"""
#: The whole section is a test's of its own.
GUIDE = ("result-store.md", "In five minutes")


def shell_lines(text: str) -> Iterator[tuple[str, str]]:
    """Commands in the blocks of a text: the host whose prompt they follow, "" without one."""
    for language, block in blocks(text):
        if language not in SHELL_LANGUAGES:
            continue
        for line in joined_lines(block):
            prompt = PROMPT.match(line)
            command = re.split(r"\s{2,}(?=#|lines|flows|the same)", PROMPT.sub("", line))[0].strip()
            if prompt or COMMAND.match(command):
                yield (prompt[1] if prompt else ""), command


def commands(name: str, wanted: str = "") -> list[tuple[str, str]]:
    """The commands of a page, or of one of its sections."""
    return [
        line
        for title, text in sections(docs_page(name))
        if wanted in ("", title)
        for line in shell_lines(text)
    ]


class Shell:
    """A user's shell on a host, with a home of its own.

    Args:
        home: The user's home, where commands are run.
        host: The network namespace; this machine's without one.
    """

    def __init__(self, home: Path, host: str = "") -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self._prefix = ["ip", "netns", "exec", host] if host else []
        self._lasting: list[Lasting] = []
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "COLUMNS": "200",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # The machine may be busy: 20 s are not enough then.
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        }

    def run(self, command: str, *, status: int = 0) -> str:
        """Run a command to its end; what it said."""
        if command.startswith("export "):
            self._environment |= dict(word.split("=", 1) for word in shlex.split(command)[1:])
            return ""
        done = subprocess.run(
            [*self._prefix, "sh", "-c", command],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, command: str) -> Lasting:
        """Start a command that goes on until the shell ends."""
        process = subprocess.Popen(
            [*self._prefix, "sh", "-c", f"exec {command}"],
            cwd=self.home,
            env={**self._environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lasting.append(Lasting(process))
        return self._lasting[-1]

    def close(self) -> None:
        """End what lasts."""
        for lasting in reversed(self._lasting):
            lasting.end()


class Lasting:
    """What a command that goes on has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.said = ""
        self._process = process
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, words: str, timeout_s: float = 60) -> None:
        """Wait until it says so; fail if it ends before."""
        with self._news:
            self._news.wait_for(lambda: words in self.said or self._ended, timeout_s)
            assert words in self.said

    def end(self) -> None:
        """End it as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                with self._news:
                    self.said += line
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class Walk:
    """Shells of several hosts, and what is typed there.

    Args:
        shells: By the names that a page's prompts have.
    """

    def __init__(self, shells: dict[str, Shell]) -> None:
        self.shells = shells
        self.lasting: dict[str, Lasting] = {}
        self.said: dict[str, str] = {}

    def type(self, lines: list[tuple[str, str]], until: str = "") -> None:
        """Take the next lines, up to one that begins with ``until``, and do what they say."""
        while lines and not (until and lines[0][1].startswith(until)):
            host, command = lines.pop(0)
            lasts = next((name for name in LASTING if command.startswith(name)), None)
            if lasts:
                self.lasting[lasts] = self.shells[host].start(command)
            else:
                self.said[command] = self.shells[host].run(command)

    def bring(self, name: str, source: str, target: str) -> None:
        """Carry a public key of the environment from one host to another."""
        of_source = self.shells[source].home / ".config" / "zfast" / "keys" / "prod" / name
        shutil.copy(of_source, self.shells[target].home)


@contextlib.contextmanager
def walking(tmp_path: Path, server: str, *clients: str) -> Iterator[Walk]:
    """Hosts that know the server by its name, each with a home of its own."""
    with hosts(len(clients)) as net, contextlib.ExitStack() as stack:
        net.call_server(server)
        net.route_to_server()
        names = dict(zip((server, *clients), (net.server, *net.clients), strict=True))
        shells = {name: Shell(tmp_path / name, host) for name, host in names.items()}
        for shell in shells.values():
            stack.callback(shell.close)
        yield Walk(shells)


@pytest.mark.long
def test_from_nothing_to_a_flow_on_two_hosts(tmp_path: Path) -> None:
    lines = [line for line in commands("two-hosts.md") if line[0]]
    with walking(tmp_path, "flow-host", "worker-host") as walk:
        walk.type(lines, until="zfast keys trust")
        walk.bring("server.pub", "flow-host", "worker-host")
        walk.bring("worker-1.pub", "worker-host", "flow-host")
        (program,) = blocks_of(docs_page("two-hosts.md"), "The flow", "python")
        flow_host = walk.shells["flow-host"]
        (flow_host.home / "flow.py").write_text(program)
        walk.type(lines, until="zfast worker")
        flow_host.run(f"python -c {shlex.quote(WAIT_FOR_API)} http://flow-host:4200/api")
        walk.type(lines)
    assert "(499999500000.0, " in walk.said["python flow.py"]
    assert "Completed" in walk.said["python flow.py"]
    assert "claim" in walk.said["zfast token check --key worker-1 -e prod"]


@pytest.mark.long
def test_states_are_heard_between_hosts(tmp_path: Path) -> None:
    lines = [line for line in commands("live-states.md", "Between hosts") if line[0]]
    with walking(tmp_path, "server", "driver", "alice") as walk:
        walk.type(lines, until="zfast keys authorize")
        walk.bring("driver-1.pub", "driver", "server")
        walk.bring("alice.pub", "alice", "server")
        walk.bring("server.pub", "server", "driver")
        walk.bring("server.pub", "server", "alice")
        (walk.shells["driver"].home / "my_flow.py").write_text(
            "from prefect import flow\nimport zfast.prefect\n"
            "@flow\ndef heard_far_away(): ...\nheard_far_away()\n"
        )
        walk.type(lines)
        walk.lasting["zfast watch"].wait_for("heard-far-away")
        walk.lasting["zfast watch"].wait_for("Completed")


def test_the_page_on_security(tmp_path: Path) -> None:
    with walking(tmp_path, "server", "client") as walk:
        lines = commands("security.md", "Two hosts")
        walk.type(lines, until="zfast keys trust")
        walk.bring("server.pub", "server", "client")
        walk.bring("worker-1.pub", "client", "server")
        walk.type(lines)
        (walk.shells["server"].home / "listen.py").write_text(LISTENER)
        rx = walk.shells["server"].start("python listen.py")
        rx.wait_for("listens")
        for _, command in commands("security.md", "What is wrong?"):
            walk.shells["client"].run(command)
        rotation = commands("security.md", "Rotation and revocation")
        of_one_host = [line for line in rotation if not line[0]]
        of_two = [line for line in rotation if line[0]]
        walk.type(of_two, until="zfast keys authorize")
        walk.bring("worker-2.pub", "client", "server")
        walk.type(of_two)
    alone = Walk({"": Shell(tmp_path / "alone")})
    alone.type(commands("security.md", "One host, in a minute"))
    alone.type(of_one_host)
    assert "worker-1" in alone.said["zfast keys list"]


@pytest.mark.long
def test_the_end_of_the_quickstart(tmp_path: Path) -> None:
    walk = Walk({"": Shell(tmp_path)})
    walk.type(commands("quickstart.md", "See it on your own machine"))
    assert "pyzmq" in walk.said["zfast bench --small"]


def test_every_command_of_the_documentation_is_run_by_a_test() -> None:
    for path in PAGES:
        for title, text in sections(path):
            if {(path.name, title), (path.name, "")} & WALKED or (path.name, title) == GUIDE:
                continue
            for _, command in shell_lines(text):
                assert command.startswith(tuple(ELSEWHERE)), f"{path.name}, {title}: {command}"
