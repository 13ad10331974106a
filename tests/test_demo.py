"""``zfast demo``: its figures, its answers, its errors, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from zfast.cli.app import run
from zfast.cli.progress import StepProgress
from zfast.demo import server
from zfast.demo.bodies import Body, shortest_s
from zfast.demo.comparison import Workload, compare
from zfast.demo.server import prefect_environment
from zfast.demo.workspace import Workspace
from zfast.errors import ZfastError

_COMMAND = [sys.executable, "-c", "from zfast.cli import main; main()", "demo"]
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def temp_folder(short_folder: Path) -> Path:
    """The demo's temporary folder; short, because a socket's path must be."""
    return short_folder


def environment(temp_folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temp_folder), **more}


def leftovers(processes: list[psutil.Process], temp_folder: Path, within_s: float) -> list[object]:
    """Processes that run and files that exist after so long."""
    deadline = time.monotonic() + within_s
    while True:
        # A zombie that nobody reaps is dead all the same.
        alive = [
            process
            for process in processes
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]
        left = [*alive, *temp_folder.iterdir()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def start_until(line_start: str, temp_folder: Path, n_processes: int) -> subprocess.Popen[str]:
    """Start the demo; return when it says so and has at least so many processes below it."""
    demo = subprocess.Popen(
        [*_COMMAND, "--scale", "4", "--runner", "zfast"],
        env=environment(temp_folder),
        cwd=temp_folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stderr is not None
    for line in demo.stderr:
        if line.startswith(line_start):
            break
    else:
        pytest.fail(f"the demo ended with status {demo.wait()}")
    deadline = time.monotonic() + 30
    while len(psutil.Process(demo.pid).children(recursive=True)) < n_processes:
        assert time.monotonic() < deadline
        assert demo.poll() is None
        time.sleep(0.01)
    return demo


@pytest.mark.timeout(120)
@pytest.mark.long
def test_flights_on_thread_and_zfast(temp_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "made" / "[red]for it"
    done = subprocess.run(
        [*_COMMAND, "--scale=1", "--runner=thread", "--runner=zfast", f"--output={output}"],
        env=environment(temp_folder),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ("ThreadPoolTaskRunner", "ZfastTaskRunner", "wall clock", "handed over"):
        assert words in done.stdout
    assert "Frontier Airlines Inc." in done.stdout
    assert "All runners gave this same answer." in done.stdout
    assert "ProcessPoolTaskRunner" not in done.stdout
    assert f"picture: {output / 'runners.png'}" in done.stdout
    assert (output / "runners.png").read_bytes().startswith(_PNG_SIGNATURE)
    assert leftovers([], temp_folder, within_s=0) == []


@pytest.mark.long
@pytest.mark.timeout(120)
def test_own_table_as_json_on_a_server_of_the_users(
    temp_folder: Path, tmp_path: Path, prefect_api: str
) -> None:
    rng = np.random.default_rng(7)
    table = pd.DataFrame({"a": rng.normal(size=999), "b": np.arange(999), "text": ["x"] * 999})
    table.loc[5, "a"] = np.nan
    path = tmp_path / "own.parquet"
    table.to_parquet(path)
    done = subprocess.run(
        [*_COMMAND, "--input", "own.parquet", "--json", "--runner", "zfast", "--runner", "thread"],
        env=environment(temp_folder, PREFECT_API_URL=prefect_api),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"using the server at {prefect_api}" in done.stderr
    report = json.loads(done.stdout)
    assert report["answers_equal"] is True
    assert [run["runner"] for run in report["runs"]] == ["zfast", "thread"]
    for figures in report["runs"]:
        assert figures["n_tasks"] == 6
        assert figures["handed_nbytes"] > 4 * 999 * 16
        assert figures["peak_memory_nbytes"] > 50e6
        assert figures["wall_s"] == pytest.approx(
            figures["first_task_s"] + figures["bodies_s"] + figures["lost_s"]
        )
    by_name = {row["column"]: row for row in report["answer"]["columns"]}
    assert set(by_name) == {"a", "b"}
    for name, row in by_name.items():
        assert row["count"] == table[name].count()
        for figure in ("sum", "mean", "min", "max"):
            assert row[figure] == pytest.approx(table[name].agg(figure))
    assert (tmp_path / report["picture"]).read_bytes().startswith(_PNG_SIGNATURE)
    assert leftovers([], temp_folder, within_s=0) == []


@pytest.mark.long
@pytest.mark.timeout(120)
def test_ctrl_c_leaves_nothing_behind(temp_folder: Path) -> None:
    # The sweeper, Prefect's server and its child, the driver.
    demo = start_until("warming up", temp_folder, n_processes=3)
    processes = psutil.Process(demo.pid).children(recursive=True)
    demo.send_signal(signal.SIGINT)
    _, stderr = demo.communicate(timeout=20)
    assert demo.returncode == 130
    assert "Traceback" not in stderr
    assert leftovers(processes, temp_folder, within_s=0.5) == []


@pytest.mark.timeout(120)
@pytest.mark.long
def test_kill_9_leaves_nothing_behind(temp_folder: Path) -> None:
    # As above, and two workers.
    demo = start_until("running on ZfastTaskRunner", temp_folder, n_processes=5)
    processes = psutil.Process(demo.pid).children(recursive=True)
    demo.kill()
    demo.communicate(timeout=20)
    assert leftovers(processes, temp_folder, within_s=5) == []


def test_a_server_that_does_not_start_shows_what_it_said(
    monkeypatch: pytest.MonkeyPatch, temp_folder: Path
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(temp_folder))
    says = "print('no such database'); raise SystemExit(3)"
    monkeypatch.setattr(server, "server_command", lambda port: [sys.executable, "-c", says])
    with (
        pytest.raises(ZfastError, match="ended with status 3") as caught,
        Workspace() as workspace,
        prefect_environment(workspace),
    ):
        pass
    assert caught.value.detail == "no such database"
    assert leftovers([], temp_folder, within_s=0) == []


def test_a_flow_that_fails_shows_the_first_error(
    monkeypatch: pytest.MonkeyPatch, temp_folder: Path, prefect_api: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setattr(tempfile, "tempdir", str(temp_folder))
    no_years = {"n_years": 0}
    workload = Workload("zfast.demo.flow:flight_delays", no_years, no_years, "no flights")
    with StepProgress() as progress, pytest.raises(ZfastError) as caught:
        compare(workload, ["zfast"], 2, progress)
    assert caught.value.message == "the flow failed on ThreadPoolTaskRunner: status 1"
    assert caught.value.detail is not None
    assert "No objects to concatenate" in caught.value.detail
    assert "Task run 'load_" in caught.value.detail
    assert leftovers([], temp_folder, within_s=0) == []


def test_the_workspace_ends_its_processes_and_folder(
    monkeypatch: pytest.MonkeyPatch, temp_folder: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temp_folder))
    with Workspace() as workspace:
        sleep = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '600'])"]
        process = workspace.start("sleep", sleep, os.environ)
        while not (children := psutil.Process(process.pid).children()):
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    assert leftovers(children, temp_folder, within_s=2) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no such file"),
        ("table.xlsx", b"x", "cannot tell what kind of file"),
        ("noextension", b"x", "cannot tell what kind of file"),
        ("empty.csv", b"", "holds no rows"),
        ("empty.parquet", b"", "holds no rows"),
        ("blank.csv", b"\n\n", "holds no rows"),
        ("header.csv", b"a,b\n", "holds no rows"),
        ("text.csv", b"a,b\nx,y\n", "none of its 2 columns is numeric"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n", "cannot be read as csv"),
        ("binary.csv", b"\xff\xfe\x00\x81\n" * 9, "cannot be read as csv"),
        ("wrong.parquet", b"this is not parquet", "cannot be read as parquet"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(
    name: str,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(["demo", "--input", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert name in err
    assert message in err
    assert "hint:" in err


def test_parquet_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"a": np.empty(0)}).to_parquet(path)
    assert run(["demo", "--input", str(path)]) == 1
    assert "holds no rows" in capsys.readouterr().err


def test_a_folder_is_not_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert run(["demo", "--input", str(tmp_path / "folder.csv")]) == 1
    assert "this is not a file" in capsys.readouterr().err


def test_scale_is_not_for_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--input", "own.csv", "--scale", "2"]) == 2
    assert "--scale is for the flights" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["file/folder", "/proc"])
def test_output_where_no_file_can_be(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(["demo", "--output", str(tmp_path / folder)]) == 1
    assert f"cannot write into {tmp_path / folder}" in capsys.readouterr().err


def _body(task_run_id: str, start_s: float, length_s: float, *upstream: str) -> Body:
    return Body(task_run_id, "task", list(upstream), start_s, start_s + length_s, 0)


def test_shortest_time_of_bodies() -> None:
    bodies = [
        _body("load", 10, 2),
        _body("a", 20, 3, "load"),
        _body("b", 21, 3, "load"),
        _body("c", 30, 1, "load"),
        _body("reduce", 40, 1, "a", "b", "c"),
    ]
    assert shortest_s(bodies, 1) == 2 + 3 + 3 + 1 + 1
    assert shortest_s(bodies, 2) == 2 + 3 + 1 + 1
    assert shortest_s(bodies, 3) == 2 + 3 + 1
