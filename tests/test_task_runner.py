"""ZfastTaskRunner as a flow's author sees it, with a real Prefect API and real worker processes."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from prefect import allow_failure, flow, get_run_logger, tags, task, unmapped
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import CrashedRun
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.runtime import flow_run, task_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from foremen import gone
from hub_jobs import settled
from zfast import ZfastTaskRunner
from zfast.errors import CodecError, ConfigError, WorkerDiedError
from zfast.prefect.task_runner import MAX_COMPLETIONS

pytestmark = pytest.mark.usefixtures("prefect_api")


@dataclass
class Box:
    content: Any


@task
def wait_for_file(path: Path) -> str:
    path.with_suffix(".begun").touch()
    while not path.exists():
        time.sleep(0.01)
    return path.name


@task
def identity(value: Any) -> Any:
    return value


@task
def add(a: int, b: int) -> int:
    return a + b


@task
async def add_async(a: int, b: int) -> int:
    return a + b


@task
def fail(message: str) -> None:
    raise ValueError(message)


@task
def worker_pid(_: Any = None) -> int:
    return os.getpid()


@task
def make_frame(n: int) -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(float(n))})


def run(function, *arguments, **options):
    """Run a function as the body of a flow, on one zfast worker if it does not matter."""
    runner = options.pop("task_runner", None) or ZfastTaskRunner(max_workers=1, spares=0)
    return flow(task_runner=runner, **options)(function)(*arguments)


def eventually(read, timeout=30.0):
    """Poll the API, which learns of states from events, until ``read`` gives something."""
    deadline = time.monotonic() + timeout
    while not (value := read()):
        assert time.monotonic() < deadline, "the API never got there"
        time.sleep(0.1)
    return value


def task_runs(flow_run_id):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        return client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        )


def finished_task_runs(flow_run_id, count):
    def read():
        runs = task_runs(flow_run_id)
        done = len(runs) == count and all(r.state and r.state.type != "RUNNING" for r in runs)
        return runs if done and all(r.state.type != "PENDING" for r in runs) else None

    return {r.task_key.rpartition(".")[2].partition("-")[0]: r for r in eventually(read)}


# ---- what tasks take and give -------------------------------------------------------------


def test_sync_and_async_tasks_run_in_workers_and_give_their_values():
    def body():
        pids = worker_pid.map(range(4)).result()
        return add.submit(1, 2).result(), add_async.submit(3, 4).result(), pids

    three, seven, pids = run(body)
    assert (three, seven) == (3, 7)
    assert os.getpid() not in pids
    assert len(set(pids)) <= 2


def test_async_flows_submit_too():
    import asyncio

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    async def body():
        return add_async.submit(add.submit(1, 2), 3).result()

    assert asyncio.run(body()) == 6


def test_futures_are_resolved_wherever_they_are():
    def body():
        one, frame = identity.submit(1), make_frame.submit(3)
        nested = identity.submit({"list": [one, (one, 2)], "box": Box(one), "frame": frame})
        return nested.result()

    value = run(body)
    assert value["list"] == [1, (1, 2)]
    assert value["box"] == Box(1)
    assert value["frame"].x.tolist() == [0.0, 1.0, 2.0]


def test_map_with_static_and_unmapped_parameters():
    def body():
        total = identity.submit([10, 20])
        return (
            add.map([1, 2, 3], 10).result(),
            add.map(total, b=unmapped(1)).result(),
        )

    assert run(body) == ([11, 12, 13], [11, 21])


def test_wait_for_holds_a_task_back(tmp_path):
    @task
    def write(path: Path) -> None:
        time.sleep(0.3)
        path.write_text("written")

    @task
    def read(path: Path) -> str:
        return path.read_text()

    def body():
        written = write.submit(tmp_path / "file")
        return read.submit(tmp_path / "file", wait_for=[written]).result()

    assert run(body) == "written"


def test_tasks_run_side_by_side(tmp_path):
    @task
    def meet(name: str, other: str) -> bool:
        (tmp_path / name).touch()
        deadline = time.monotonic() + 30
        while not (tmp_path / other).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return (tmp_path / other).exists()

    def body():
        futures = [meet.submit("a", "b"), meet.submit("b", "a")]
        return [future.result() for future in futures]

    assert run(body, task_runner=ZfastTaskRunner(max_workers=2, spares=0)) == [True, True]


def test_futures_work_with_wait_and_as_completed():
    def body():
        futures = [identity.submit(i) for i in range(5)]
        done, pending = wait(futures, timeout=60)
        assert not pending
        assert len(done) == 5
        return sorted(future.result() for future in as_completed(futures))

    assert run(body) == list(range(5))


def test_futures_of_another_runner_are_taken():
    def body():
        with ThreadPoolTaskRunner(max_workers=1) as threads:
            foreign = threads.submit(identity, {"value": 20})
            return add.submit(foreign, 1).result()

    assert run(body) == 21


def test_parameters_are_what_they_were_at_submit():
    def body():
        array = np.zeros(500_000)
        blocker = worker_pid.map(range(4))
        future = identity.submit(array, wait_for=[blocker])
        array[:] = 1
        return float(future.result().sum())

    assert run(body) == 0.0


def test_what_a_task_closes_over_is_what_it_was_at_submit():
    threshold = 0

    @task
    def above(value: int) -> int:
        return value + threshold

    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        for threshold in (1, 2, 3):
            assert runner.submit(above, {"value": 10}).result() == 10 + threshold


def test_tasks_see_the_drivers_arguments():
    @task
    def arguments() -> list[str]:
        return sys.argv

    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        assert runner.submit(arguments, {}).result() == sys.argv


def test_an_exception_as_a_value_is_left_alone():
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        value = runner.submit(identity, {"value": ValueError("x")}).result()
    assert not getattr(value, "__notes__", None)


def test_large_frames_pass_from_task_to_task():
    @task
    def double(frame: pd.DataFrame) -> pd.DataFrame:
        return frame * 2

    def body():
        frame = double.submit(make_frame.submit(1_000_000)).result()
        frame.iloc[0, 0] = 7  # received frames behave like any other
        return float(frame.x.sum())

    assert run(body) == 2 * sum(range(1_000_000)) + 7


def test_results_are_snapshots_of_what_the_task_returned():
    buffer = np.zeros(500_000)

    @task
    def reuse(value: int) -> np.ndarray:
        buffer[:] = value
        return buffer

    def body():
        return [float(array[0]) for array in reuse.map(range(8)).result()]

    assert run(body) == [float(i) for i in range(8)]


# ---- failures -----------------------------------------------------------------------------


def test_an_exception_comes_back_with_its_traceback():
    def body():
        future = fail.submit("nope")
        future.wait()
        assert future.state.is_failed()
        future.result()

    with pytest.raises(ValueError, match="nope") as caught:
        run(body)
    assert "in fail" in "".join(caught.value.__notes__)


def test_a_failed_upstream_keeps_its_downstream_from_running():
    def body():
        failed = fail.submit("nope")
        downstream = add.submit(failed, 1)
        downstream.wait()
        state = downstream.state
        allowed = identity.submit(allow_failure(failed)).result()
        return state, repr(allowed)

    state, allowed = run(body)
    assert state.name == "NotReady"
    assert allowed == "ValueError('nope')"
    assert "did not reach a 'COMPLETED' state" in state.message


def test_quoted_parameters_are_left_alone():
    def body():
        return identity.submit(quote({"a": [1, 2]})).result()

    value = run(body)
    assert getattr(value, "value", value) == {"a": [1, 2]}


def test_retries_happen_in_the_worker(tmp_path):
    @task(retries=2)
    def flaky() -> int:
        attempts = len(list(tmp_path.iterdir()))
        (tmp_path / str(attempts)).touch()
        if attempts < 2:
            raise RuntimeError("not yet")
        return attempts

    assert run(lambda: flaky.submit().result()) == 2


def test_an_exception_that_cannot_be_pickled_still_fails_its_task():
    @task
    def odd() -> None:
        error = RuntimeError("odd")
        error.lock = threading.Lock()
        raise error

    def body():
        future = odd.submit()
        future.wait()
        assert future.state.is_failed()
        return repr(future.result(raise_on_failure=False))

    assert "RuntimeError: odd" in run(body)


def test_what_cannot_be_sent_fails_its_own_future_and_leaves_the_worker_alive():
    lock = threading.Lock()

    @task
    def closes_over_a_lock() -> None:
        lock.acquire()

    @task
    def returns_a_lock() -> Any:
        return threading.Lock()

    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        pid = runner.submit(worker_pid, {}).result()
        futures = [
            runner.submit(identity, {"value": threading.Lock()}),
            runner.submit(closes_over_a_lock, {}),
            runner.submit(returns_a_lock, {}),
        ]
        for future in futures:
            future.wait()
            assert future.state.is_crashed(), future.state
            assert "lock" in future.state.message
        assert isinstance(futures[0].state.data, CodecError)
        assert runner.submit(worker_pid, {}).result() == pid


def test_a_task_whose_module_the_worker_cannot_import(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("only_here")

    def body():
        worker_pid.submit().result()  # the worker has started; now the module disappears
        (tmp_path / "only_here.py").unlink()
        future = identity.submit(sys.modules["only_here"].Thing())
        future.wait()
        assert future.state.is_crashed()
        assert "only_here" in future.state.message
        return worker_pid.submit().result()

    assert run(body, task_runner=ZfastTaskRunner(max_workers=1, spares=0)) != os.getpid()


def test_a_task_that_ends_its_interpreter_politely_does_not_end_the_worker():
    @task
    def leave() -> None:
        raise SystemExit(3)

    def body():
        pid = worker_pid.submit().result()
        future = leave.submit()
        future.wait()
        assert future.state.is_crashed(), future.state
        return pid, worker_pid.submit().result()

    before, after = run(body, task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    assert before == after


@pytest.mark.parametrize("how", ["kill -9", pytest.param("exit", marks=pytest.mark.long)])
def test_a_worker_that_dies_crashes_its_task_and_is_replaced(how):
    @task
    def die() -> None:
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)

    run_ids = []

    def body():
        run_ids.append(FlowRunContext.get().flow_run.id)
        before = worker_pid.submit().result()
        queued = [die.submit(), *(identity.submit(i) for i in range(3))]
        wait(queued)
        state = queued[0].state
        assert [future.result() for future in queued[1:]] == [0, 1, 2]
        assert state.is_crashed()
        assert isinstance(state.data, WorkerDiedError)
        with pytest.raises((WorkerDiedError, CrashedRun)):
            queued[0].result()
        assert worker_pid.submit().result() != before
        return state.message

    message = run(body, task_runner=ZfastTaskRunner(max_workers=1))
    assert ("exited with status 3" if how == "exit" else "killed by SIGKILL") in message

    def crashed():
        return [r for r in task_runs(run_ids[0]) if r.task_key.startswith("die")]

    runs = eventually(lambda: [r for r in crashed() if r.state_type == "CRASHED"])
    assert "the worker process" in runs[0].state.message


def test_workers_that_cannot_start_fail_their_tasks_with_the_cause(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")

    def body():
        future = identity.submit(1)
        future.wait()
        assert future.state.is_crashed()
        return future.state.message

    message = run(body)
    assert "ended before they were ready" in message
    assert "exited with status 1" in message


# ---- the API's view -----------------------------------------------------------------------


@task
def talk(value: int) -> int:
    get_run_logger().info("talking about %s", value)
    return value


def test_states_logs_and_dependencies_reach_the_api():
    run_ids = []

    def body():
        run_ids.append(FlowRunContext.get().flow_run.id)
        with tags("urgent"):
            first = talk.submit(1)
        second = add.submit(first, 2)
        last = identity.submit([second], wait_for=[first])
        failed = fail.submit("nope")
        wait([last, failed])

    run(body)
    runs = finished_task_runs(run_ids[0], 4)
    assert {key: r.state_name for key, r in runs.items()} == {
        "talk": "Completed",
        "add": "Completed",
        "identity": "Completed",
        "fail": "Failed",
    }
    assert all(r.run_count == 1 and r.start_time and r.end_time for r in runs.values())
    assert runs["talk"].tags == ["urgent"]
    assert runs["add"].tags == []
    upstream = {
        name: {i.id for i in inputs if hasattr(i, "id")}
        for name, inputs in runs["add"].task_inputs.items()
    }
    assert upstream["a"] == {runs["talk"].id}
    assert [i.id for i in runs["identity"].task_inputs["value"]] == [runs["add"].id]
    assert [i.id for i in runs["identity"].task_inputs["wait_for"]] == [runs["talk"].id]

    def messages():
        with get_client(sync_client=True) as client:
            found = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=run_ids)), limit=200
            )
        return [log for log in found if log.message == "talking about 1"]

    logs = eventually(messages)
    assert [log.task_run_id for log in logs] == [runs["talk"].id]


def test_tasks_are_not_taken_to_depend_on_those_that_ran_before_them():
    """Prefect knows results by their addresses, which others have when they are gone."""

    @task
    def noted(fails: bool) -> list[list[int]]:
        known = FlowRunContext.get().run_results
        before = len(known)
        identity([before])
        assert len(known) > before
        if fails:
            raise ValueError("after all")
        return [[before]]

    @task
    def outer() -> int:
        return add(identity(1000), 1)

    run_ids = []

    def body():
        run_ids.append(FlowRunContext.get().flow_run.id)
        noted.submit(fails=True).wait()
        found = noted.map([False] * 3).result()
        return found, outer.submit().result()

    assert run(body) == ([[[0]]] * 3, 1001)
    (added,) = eventually(lambda: [r for r in task_runs(run_ids[0]) if r.name.startswith("add-")])
    (made,) = added.task_inputs["a"]
    # What is called in a task that runs is still known there.
    assert made.id in {r.id for r in task_runs(run_ids[0]) if r.name.startswith("identity-")}


def test_a_task_sees_its_run_its_tags_and_its_flow():
    @task(name="curious")
    def look() -> dict[str, Any]:
        context = TaskRunContext.get()
        return {
            "task": context.task.name,
            "flow": flow_run.name,
            "run": task_run.id,
            "tags": sorted(task_run.tags),
            "parameters": context.parameters,
        }

    def body():
        with tags("one", "two"):
            seen = look.submit().result()
        plain = look.submit().result()
        return seen, plain["tags"], flow_run.name

    seen, plain_tags, flow_name = run(body)
    assert seen["task"] == "curious"
    assert seen["flow"] == flow_name
    assert seen["tags"] == ["one", "two"]
    assert plain_tags == []


def test_cached_tasks_are_not_run_again(tmp_path):
    from prefect.cache_policies import INPUTS

    @task(cache_policy=INPUTS, persist_result=True)
    def once(key: str) -> int:
        (tmp_path / f"{key}-{time.time_ns()}").touch()
        return len(key)

    def body():
        key = tmp_path.name
        first = once.submit(key)
        first.wait()
        second = once.submit(key)
        second.wait()
        return first.result(), second.result(), second.state.name

    first, second, name = run(body)
    assert first == second
    assert name == "Cached"
    assert len(list(tmp_path.iterdir())) == 1


# ---- the runner itself --------------------------------------------------------------------


def test_the_runner_alone_is_a_context_manager():
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        future = runner.submit(add, {"a": 1, "b": 2})
        assert isinstance(future, PrefectFuture)
        assert future.result() == 3
        assert future.state.is_completed()


def test_a_runner_that_is_not_started_refuses():
    with pytest.raises(RuntimeError, match="is not started"):
        ZfastTaskRunner().submit(add, {"a": 1, "b": 2})


def test_a_runner_compares_duplicates_and_pickles_by_its_configuration():
    runner = ZfastTaskRunner(max_workers=3)
    assert runner == runner.duplicate() == cloudpickle.loads(cloudpickle.dumps(runner))
    assert runner != ZfastTaskRunner(max_workers=2)
    assert runner.duplicate() is not runner
    with pytest.raises(ConfigError, match="from 1 on"):
        ZfastTaskRunner(max_workers=0)
    with pytest.raises(ConfigError, match="not '2'"):
        ZfastTaskRunner(max_workers="2")


def test_a_subclass_with_a_constructor_of_its_own_runs_a_flow():
    class ThreeTimes(ZfastTaskRunner):
        def __init__(self, factor: int = 3) -> None:
            super().__init__(max_workers=1, spares=0)
            self.factor = factor

    @flow(task_runner=ThreeTimes())
    def multiplies() -> int:
        runner = FlowRunContext.get().task_runner
        return identity.submit(2).result() * runner.factor

    assert multiplies() == 6


def test_nothing_starts_before_the_first_submit():
    before = set(Path("/proc/self/task").iterdir())
    with ZfastTaskRunner(max_workers=1):
        assert set(Path("/proc/self/task").iterdir()) <= before


def test_leaving_the_runner_takes_back_what_has_not_started(tmp_path):
    go = tmp_path / "go"
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        futures = [runner.submit(wait_for_file, {"path": go}) for _ in range(3)]
        futures[-1].add_done_callback(lambda _: go.touch())
        settled(go.with_suffix(".begun").exists)
    assert futures[0].result() == "go"
    assert [future.state.name for future in futures[1:]] == ["Cancelled", "Cancelled"]


def test_cancelling_the_original_reaches_the_running_duplicate(tmp_path):
    original = ZfastTaskRunner(max_workers=1, spares=0)
    go = tmp_path / "go"
    with original.duplicate() as running:
        futures = [running.submit(wait_for_file, {"path": go}) for _ in range(2)]
        settled(go.with_suffix(".begun").exists)
        original.cancel_all()
        futures[1].wait(30)
        go.touch()
        assert futures[1].state.name == "Cancelled"
        assert futures[0].result() == "go"


def test_a_callback_may_wait_for_another_future():
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        first = runner.submit(identity, {"value": 1})
        results = []
        called = threading.Event()

        def callback(_):
            results.append(runner.submit(identity, {"value": 2}).result())
            called.set()

        first.add_done_callback(callback)
        assert called.wait(60)
    assert results == [2]


def test_who_tires_of_waiting_does_not_end_the_task_run():
    async def tire(future):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future.wrapped_future), 0.01)

    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        first = runner.submit(identity, {"value": 1})
        second = runner.submit(identity, {"value": first})
        assert not first.wrapped_future.cancel()
        asyncio.run(tire(first))
        assert second.result() == 1
        assert first.result() == 1


def test_callbacks_that_block_keep_no_future_from_its_end():
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        futures = [runner.submit(identity, {"value": i}) for i in range(2 * MAX_COMPLETIONS)]
        last = runner.submit(identity, {"value": "last"})
        last.add_done_callback(lambda _: None)
        for future in futures:
            future.add_done_callback(lambda _: last.wait())
        assert last.result(timeout=60) == "last"


def test_an_interrupt_while_the_runner_is_left_ends_what_runs(tmp_path):
    begun = tmp_path / "begun"

    @task
    def sleeps(path) -> None:
        Path(path).touch()
        time.sleep(600)

    runner = ZfastTaskRunner(max_workers=1, spares=0)

    def interrupt() -> None:
        eventually(begun.exists, 60)
        eventually(lambda: runner._hub._closing, 60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt), runner:  # noqa: PT012
        future = runner.submit(sleeps, {"path": str(begun)})
        eventually(begun.exists, 60)
        pids = runner._hub.worker_pids
        interrupting.start()
    interrupting.join()
    assert future.state.is_crashed()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with runner:
        assert runner.submit(identity, {"value": 1}).result() == 1


def test_threads_may_submit_at_once():
    with ZfastTaskRunner(max_workers=2, spares=0) as runner:
        results = []

        def submit(start):
            futures = [runner.submit(add, {"a": start, "b": i}) for i in range(10)]
            results.extend(future.result() for future in futures)

        threads = [threading.Thread(target=submit, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == sorted(100 * i + j for i in range(4) for j in range(10))


DRIVER = """
import os, time
from pathlib import Path
from prefect import flow, task
from zfast import ZfastTaskRunner

@task
def announce_and_sleep(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)

@flow(task_runner=ZfastTaskRunner(max_workers=2))
def sleepy(folder):
    futures = [announce_and_sleep.submit(f"{folder}/{i}") for i in range(2)]
    for future in futures:
        future.result()

sleepy(os.environ["FOLDER"])
"""


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT]
)
def test_a_flow_that_is_killed_leaves_no_worker_and_no_socket(
    prefect_api, tmp_path, runtime_root, how
):
    environment = {**os.environ, "PREFECT_API_URL": prefect_api, "FOLDER": str(tmp_path)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=environment, stderr=subprocess.DEVNULL
    )
    pids = [int(eventually(lambda i=i: _text(tmp_path / str(i)), 60)) for i in range(2)]
    driver.send_signal(how)
    try:
        driver.wait(timeout=30)
    finally:
        driver.kill()
        driver.wait()
    eventually(lambda: all(gone(pid) for pid in pids), 20)
    eventually(lambda: not list(runtime_root.iterdir()), 20)


def _text(path):
    return path.read_text() if path.exists() else None


FACTOR = 1


@task
def scale(value: int) -> int:
    return value * FACTOR


# The function goes by value, with the global that it reads.
scale.fn.__module__ = "__main__"


def test_each_map_takes_the_code_as_it_is_then(monkeypatch):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        first = runner.map(scale, {"value": [1, 2, 3]})
        monkeypatch.setitem(globals(), "FACTOR", 10)
        second = runner.map(scale, {"value": [1, 2, 3]})
        third = runner.submit(scale, {"value": 4})
        assert first.result() == [1, 2, 3]
        assert second.result() == [10, 20, 30]
        assert third.result() == 40


def test_a_map_of_what_cannot_be_sent_is_known_at_each_future():
    lock = threading.Lock()

    @task
    def locked(value: int) -> int:
        with lock:
            return value

    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        futures = runner.map(locked, {"value": [1, 2]})
        assert [future.state.name for future in futures] == ["Crashed", "Crashed"]
        assert runner.map(identity, {"value": [1, 2]}).result() == [1, 2]


@task
def times_hundred(value: int) -> int:
    return 100 * value


@task
def summed(values: np.ndarray) -> float:
    return float(values.sum())


@pytest.mark.parametrize("listed", [iter, list])
def test_a_map_over_what_submits_other_tasks_runs_its_own(listed):
    with ZfastTaskRunner(max_workers=2, spares=0) as runner:
        futures = runner.map(
            times_hundred,
            {"value": listed(runner.submit(identity, {"value": i}) for i in range(1, 4))},
            wait_for=(runner.submit(identity, {"value": i}) for i in range(2)),
        )
        assert futures.result() == [100, 200, 300]


def test_what_changes_while_a_map_is_read_is_taken_as_it_was_then():
    def changing():
        for i in range(1, 4):
            values[:] = i
            yield runner.submit(summed, {"values": values})

    values = np.zeros(1_000_000)
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        assert runner.map(identity, {"value": changing()}).result() == [1e6, 2e6, 3e6]


def test_a_subclass_may_submit_other_tasks_from_a_map():
    class Alternating(ZfastTaskRunner):
        def submit(self, task, parameters, wait_for=None, dependencies=None):
            if parameters["value"] % 2:
                task = times_hundred
            return super().submit(task, parameters, wait_for, dependencies)

    with Alternating(max_workers=1, spares=0) as runner:
        assert runner.map(identity, {"value": [1, 2, 3]}).result() == [100, 2, 300]
