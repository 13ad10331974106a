"""Task runs whose worker dies, as a flow's author and Prefect's API see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext

from test_task_runner import eventually, task_runs
from zfast import ZfastTaskRunner
from zfast.errors import ConfigError, WorkerStartError

pytestmark = pytest.mark.usefixtures("prefect_api")


@task
def die_once(folder: Path) -> tuple[int, str]:
    """Its first worker is killed in the midst of it."""
    attempt = len(list(folder.iterdir())) + 1
    (folder / f"{attempt}").touch()
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return TaskRunContext.get().task_run.run_count, TaskRunContext.get().task_run.name


def history(run_ids, is_complete):
    """The states of a flow's only task run, in order, once they are as they should be."""

    def read():
        (run,) = task_runs(run_ids[0]) or [None]
        if run is None:
            return None
        with get_client(sync_client=True) as client:
            states = client._client.get(
                "/task_run_states/", params={"task_run_id": str(run.id)}
            ).json()
        states.sort(key=lambda state: state["timestamp"])
        return (run, states) if is_complete(run, [state["name"] for state in states]) else None

    return eventually(read)


def test_a_task_run_goes_on_under_its_id_and_its_states_tell_why(tmp_path):
    run_ids = []

    @flow(task_runner=ZfastTaskRunner(max_workers=1))
    def body():
        run_ids.append(FlowRunContext.get().flow_run.id)
        future = die_once.submit(tmp_path)
        return future.result(), future.task_run_id

    (_, name), task_run_id = body()
    run, states = history(run_ids, lambda run, names: names[-2:] == ["Running", "Completed"])
    assert run.id == task_run_id
    assert run.name == name
    names = [state["name"] for state in states]
    # What the first worker said may have died with it; then the second begins with Pending.
    assert names[-2:] == ["Running", "Completed"]
    assert set(names[:-2]) <= {"Pending", "Running", "AwaitingRetry"}
    assert names.count("AwaitingRetry") <= 1
    for state in states:
        if state["name"] == "AwaitingRetry":
            assert "killed by SIGKILL" in state["message"]
            assert "Attempt 2" in state["message"]


def test_a_begun_task_run_that_the_api_knows_waits_for_its_retry(tmp_path):
    """As before, but the API has heard that it runs when its worker is killed."""
    run_ids = []

    @task
    def die_when_known(folder: Path) -> int:
        run = TaskRunContext.get().task_run
        if not list(folder.iterdir()):
            (folder / "begun").touch()
            eventually(lambda: [r for r in task_runs(run.flow_run_id) if r.state_name == "Running"])
            os.kill(os.getpid(), signal.SIGKILL)
        return run.run_count

    @flow(task_runner=ZfastTaskRunner(max_workers=1))
    def body():
        run_ids.append(FlowRunContext.get().flow_run.id)
        return die_when_known.submit(tmp_path).result()

    assert body() == 2
    story = ["Pending", "Running", "AwaitingRetry", "Running", "Completed"]
    run, states = history(run_ids, lambda run, names: names == story)
    assert "killed by SIGKILL" in states[2]["message"]
    assert eventually(lambda: task_runs(run_ids[0])[0].run_count == 2)
    assert run.start_time < run.end_time


def test_a_task_run_that_waits_for_its_retry_when_it_is_cancelled_is_cancelled(tmp_path):
    """Its worker died; the next one has more to do before it."""

    @task
    def die_when_known(folder: Path) -> None:
        flow_run_id = TaskRunContext.get().task_run.flow_run_id
        eventually(lambda: [r for r in task_runs(flow_run_id) if r.state_name == "Running"])
        (folder / "waits").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)

    def starting(folder: Path) -> None:
        """The worker after the one that dies does not get ready before it may."""
        while (folder / "waits").exists() and not (folder / "go").exists():
            time.sleep(0.01)

    run_ids = []

    @flow(task_runner=ZfastTaskRunner(
        max_workers=1, spares=0, initializer=starting, initargs=(tmp_path,)
    ))  # fmt: skip
    def body():
        run_ids.append(FlowRunContext.get().flow_run.id)
        future = die_when_known.submit(tmp_path)
        eventually(lambda: [r for r in task_runs(run_ids[0]) if r.state_name == "AwaitingRetry"])
        FlowRunContext.get().task_runner.cancel_all()
        future.wait()
        (tmp_path / "go").touch()
        return future.state.name

    assert body() == "Cancelled"
    story = ["Pending", "Running", "AwaitingRetry", "Cancelled"]
    _, states = history(run_ids, lambda run, names: names == story)
    assert "not run again" in states[-1]["message"]


def test_a_result_that_was_stored_before_the_death_is_used(tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()

    @task(persist_result=True)
    def once(folder: Path) -> int:
        (folder / f"{os.getpid()}").touch()
        return os.getpid()

    @once.on_completion
    def die(*_) -> None:
        if not (tmp_path / "dead").exists():
            (tmp_path / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @flow(task_runner=ZfastTaskRunner(max_workers=1))
    def body():
        return once.submit(begun).result()

    pid = body()
    assert (tmp_path / "dead").exists()
    assert [path.name for path in begun.iterdir()] == [str(pid)]


TWO_STEPS = """
import os, sys
from pathlib import Path
from prefect import flow, task
from prefect.cache_policies import INPUTS
from zfast import ZfastTaskRunner

folder = Path(sys.argv[1])

@task(persist_result=True, cache_policy=INPUTS)
def first(n: int) -> int:
    (folder / f"first-{os.getpid()}").touch()
    return n + 1

@task
def second(n: int) -> int:
    if not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(int((folder / "driver").read_text()), 9)
    return n + 1

@flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
def steps():
    (folder / "driver").write_text(str(os.getpid()))
    print(second.submit(first.submit(0)).result())

steps()
"""


def test_a_flow_that_was_killed_and_is_run_again_finds_what_it_persisted(prefect_api, tmp_path):
    def run():
        return subprocess.run(
            [sys.executable, "-c", TWO_STEPS, str(tmp_path)],
            env={
                **os.environ,
                "PREFECT_API_URL": prefect_api,
                "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "results"),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert run().returncode == -signal.SIGKILL
    again = run()
    assert again.stdout.split() == ["2"], again.stderr
    assert len(list(tmp_path.glob("first-*"))) == 1


def test_settings_are_checked_kept_and_used(tmp_path):
    with pytest.raises(ConfigError, match="min_workers is 3, more than max_workers, 2"):
        ZfastTaskRunner(max_workers=2, min_workers=3)
    with pytest.raises(ConfigError, match="min_workers must be a whole number"):
        ZfastTaskRunner(min_workers="2")
    with pytest.raises(ConfigError, match="initializer must be callable"):
        ZfastTaskRunner(initializer="module:name")
    with pytest.raises(ConfigError, match="lease_s must be a positive number"):
        ZfastTaskRunner(lease_s=-1)
    runner = ZfastTaskRunner(max_workers=1, initializer=os.putenv, initargs=("A", "b"))
    assert runner.duplicate() == runner != ZfastTaskRunner(max_workers=1)

    def set_variable(value):
        os.environ["ZFAST_TEST_INIT"] = value

    @task
    def variable() -> str:
        return os.environ["ZFAST_TEST_INIT"]

    with ZfastTaskRunner(max_workers=1, initializer=set_variable, initargs=("done",)) as runner:
        assert runner.submit(variable, {}).result() == "done"


def test_a_failing_initializer_crashes_the_tasks_with_its_words():
    def fail():
        raise RuntimeError("no licence for this")

    @task
    def nothing() -> None: ...

    with ZfastTaskRunner(max_workers=1, initializer=fail) as runner:
        future = runner.submit(nothing, {})
        future.wait()
    assert future.state.is_crashed()
    assert "no licence for this" in future.state.message
    assert isinstance(future.state.data, WorkerStartError)
