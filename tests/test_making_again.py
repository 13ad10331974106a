"""Results that are lost with their host are made again, as a flow's author and the API see it.

What is lost here are segments that say so, see ``lost_hosts``; all else is real.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext

from hub_jobs import settled
from lost_hosts import WHY, Hosts
from test_task_runner import wait_for_file
from zfast import ZfastTaskRunner
from zfast.errors import ResultLostError, WorkerDiedError
from zfast.prefect.making import MAX_REMAKES, Making
from zfast.prefect.task_runner import MAX_COMPLETIONS

pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.skipif(
        not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
    ),
]
N = 100_000


@pytest.fixture
def hosts(monkeypatch):
    return Hosts(monkeypatch)


@pytest.fixture(scope="module")
def runner(prefect_api):
    with ZfastTaskRunner(max_workers=2, spares=0) as runner:
        yield runner


def note(folder: Path, name: str) -> int:
    """A file for each run of a task, whose attempt is the number of them."""
    attempt = len(list(folder.glob(f"{name}-*"))) + 1
    (folder / f"{name}-{attempt}").touch()
    return attempt


def notes_in(folder: Path) -> list[str]:
    """What was run, in order."""
    return [path.name for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns)]


@task
def make(folder: Path, name: str = "make") -> np.ndarray:
    note(folder, name)
    return np.arange(float(N))


@task
def add(array: np.ndarray, folder: Path, name: str) -> np.ndarray:
    note(folder, name)
    return array + 1


@task
def last(array: np.ndarray, folder: Path, name: str = "last") -> float:
    note(folder, name)
    return float(array[-1])


def states_of(task_run_id: Any, *story: str) -> tuple[TaskRun, list[dict[str, Any]]]:
    """A task run and its states as the API has them, once their names end with ``story``.

    It hears of them a moment later; what is begun again before that begins with Pending anew.
    """
    names: list[str] = []
    deadline = time.monotonic() + 30
    while tuple(names[-len(story) :]) != story:
        assert time.monotonic() < deadline, names
        time.sleep(0.1)
        with get_client(sync_client=True) as client:
            params = {"task_run_id": str(task_run_id)}
            states = client._client.get("/task_run_states/", params=params).json()
        states.sort(key=lambda state: state["timestamp"])
        names = [state["name"] for state in states]
    with get_client(sync_client=True) as client:
        return client.read_task_run(task_run_id), states


def done(future: Any) -> Any:
    future.wait()
    return future


# ---- who finds it gone ----------------------------------------------------------------------


def test_a_lost_result_is_made_again_under_its_id_and_its_states_tell_why(hosts):
    @task
    def count() -> tuple[int, str, np.ndarray]:
        run = TaskRunContext.get().task_run
        return run.run_count, run.name, np.arange(float(N))

    @task
    def take(counted: Any) -> tuple[int, str]:
        return counted[:2]

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def body():
        future = count.submit()
        first = take.submit(future).result()
        states_of(future.task_run_id, "Completed")
        hosts.lose()
        return first, take.submit(future).result(), future.task_run_id

    first, second, task_run_id = body()
    assert first == (1, second[1])
    assert second[0] == 2
    story = ["Pending", "Running", "Completed", "AwaitingRetry", "Running", "Completed"]
    run, states = states_of(task_run_id, *story)
    assert len(states) == len(story)
    assert run.run_count == 2
    assert WHY in states[3]["message"]
    assert "Attempt 2" in states[3]["message"]
    assert run.name == first[1]
    assert run.state_name == "Completed"
    assert run.start_time < run.end_time


def test_a_flow_that_reads_a_lost_result_has_it_made_again(hosts, runner, tmp_path):
    futures = [done(runner.submit(make, {"folder": tmp_path, "name": name})) for name in "ab"]
    hosts.lose()
    assert futures[0].result()[-1] == N - 1
    assert futures[1].state.is_completed()
    assert futures[1].state.result()[-1] == N - 1
    assert sorted(notes_in(tmp_path)) == ["a-1", "a-2", "b-1", "b-2"]


def test_what_was_read_before_is_still_there(hosts, runner, tmp_path):
    future = runner.submit(make, {"folder": tmp_path})
    array = future.result()
    hosts.lose()
    assert future.result() is array
    assert notes_in(tmp_path) == ["make-1"]


def test_a_task_that_waits_in_the_queue_gets_what_it_takes_again(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    held = [runner.submit(wait_for_file, {"path": tmp_path / f"go-{i}"}) for i in range(2)]
    settled(lambda: len(list(tmp_path.glob("go-*.begun"))) == 2)
    waiting = runner.submit(last, {"array": made, "folder": tmp_path})
    hosts.lose()
    for i in range(2):
        (tmp_path / f"go-{i}").touch()
    assert waiting.result() == N - 1
    assert [each.result() for each in held] == ["go-0", "go-1"]
    assert len(list(tmp_path.glob("make-*"))) == 2
    assert len(list(tmp_path.glob("last-*"))) == 1


def test_what_waits_for_a_lost_result_only_has_it_made_again_too(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    hosts.lose()
    after = runner.submit(wait_for_file, {"path": tmp_path}, wait_for=[made])
    assert after.result() == tmp_path.name
    assert len(list(tmp_path.glob("make-*"))) == 2


def test_a_lost_result_goes_to_another_runner(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    hosts.lose()
    with ZfastTaskRunner(max_workers=1, spares=0) as other:
        assert other.submit(last, {"array": made, "folder": tmp_path}).result() == N - 1
    assert notes_in(tmp_path) == ["make-1", "make-2", "last-1"]


# ---- what is made again ---------------------------------------------------------------------


def chain(runner: ZfastTaskRunner, folder: Path, begin: Any = make) -> Any:
    """The last future of a chain of three; nothing keeps the results before it."""
    first = runner.submit(begin, {"folder": folder})
    second = runner.submit(add, {"array": first, "folder": folder, "name": "second"})
    return done(runner.submit(add, {"array": second, "folder": folder, "name": "third"}))


def test_a_chain_that_nobody_kept_is_made_again_from_its_start(hosts, runner, tmp_path):
    third = chain(runner, tmp_path)
    hosts.lose()
    assert runner.submit(last, {"array": third, "folder": tmp_path}).result() == N + 1
    attempts = [f"{name}-{n}" for n in (1, 2) for name in ("make", "second", "third")]
    assert notes_in(tmp_path) == [*attempts, "last-1"]


def test_what_is_kept_is_not_made_again(hosts, runner, tmp_path):
    first = runner.submit(make, {"folder": tmp_path})
    second = done(runner.submit(add, {"array": first, "folder": tmp_path, "name": "second"}))
    hosts.lose(second._parcel)
    assert second.result()[-1] == N
    assert notes_in(tmp_path) == ["make-1", "second-1", "second-2"]


def test_those_who_need_the_same_result_share_its_making(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    hosts.lose()
    results = [
        runner.submit(last, {"array": made, "folder": tmp_path, "name": f"last{i}"})
        for i in range(10)
    ]
    readers = [threading.Thread(target=made.result) for _ in range(10)]
    for reader in readers:
        reader.start()
    assert [each.result() for each in results] == [N - 1] * 10
    for reader in readers:
        reader.join()
    assert len(list(tmp_path.glob("make-*"))) == 2
    # And the future keeps what was made again.
    assert runner.submit(last, {"array": made, "folder": tmp_path}).result() == N - 1
    assert len(list(tmp_path.glob("make-*"))) == 2


def test_one_input_of_many_is_made_again_alone(hosts, runner, tmp_path):
    @task
    def total(arrays: list[np.ndarray]) -> float:
        return float(sum(array[-1] for array in arrays))

    made = [done(runner.submit(make, {"folder": tmp_path, "name": name})) for name in "abc"]
    hosts.lose(made[1]._parcel)
    assert runner.submit(total, {"arrays": made}).result() == 3 * (N - 1)
    assert sorted(notes_in(tmp_path)) == ["a-1", "b-1", "b-2", "c-1"]


@pytest.mark.parametrize(
    ("policy", "n_runs"), [(INPUTS, 1), (NO_CACHE, 2)], ids=["found", "without a key"]
)
def test_a_persisted_result_is_read_and_its_task_not_run(hosts, runner, tmp_path, policy, n_runs):
    stored = make.with_options(persist_result=True, cache_policy=policy)
    folder = tmp_path / "runs"
    folder.mkdir()
    made = done(runner.submit(stored, {"folder": folder}))
    states_of(made.task_run_id, "Completed")
    hosts.lose()
    assert runner.submit(last, {"array": made, "folder": tmp_path}).result() == N - 1
    assert made.result()[-1] == N - 1
    assert len(list(folder.iterdir())) == n_runs
    names = "Completed", "AwaitingRetry", "Running", "Cached" if n_runs == 1 else "Completed"
    states_of(made.task_run_id, *names)


def test_an_asynchronous_task_with_retries_is_made_again_with_all_of_them(hosts, runner, tmp_path):
    @task(retries=1)
    async def make_async(folder: Path) -> np.ndarray:
        if note(folder, "make") % 2:
            raise ValueError("not the first time")
        return np.arange(float(N))

    made = done(runner.submit(make_async, {"folder": tmp_path}))
    states_of(made.task_run_id, "Completed")
    hosts.lose()
    assert made.result()[-1] == N - 1
    assert len(notes_in(tmp_path)) == 4
    again = "Running", "Retrying", "Completed"
    run, _ = states_of(made.task_run_id, *again, "AwaitingRetry", *again)
    assert run.run_count == 4


# ---- what cannot be made again --------------------------------------------------------------


@task
def make_once(folder: Path) -> np.ndarray:
    if note(folder, "make") > 1:
        raise ValueError("not a second time")
    return np.arange(float(N))


def test_what_fails_when_it_is_made_again_fails_as_it_does(hosts, runner, tmp_path):
    made = done(runner.submit(make_once, {"folder": tmp_path}))
    states_of(made.task_run_id, "Completed")
    hosts.lose()
    taken = done(runner.submit(last, {"array": made, "folder": tmp_path}))
    assert taken.state.name == "NotReady"
    assert made.state.is_failed()
    with pytest.raises(ValueError, match="not a second time"):
        made.result()
    assert notes_in(tmp_path) == ["make-1", "make-2"]
    states_of(made.task_run_id, "Completed", "AwaitingRetry", "Running", "Failed")


@pytest.mark.long
def test_what_dies_when_it_is_made_again_crashes(hosts, tmp_path):
    @task
    def die_later(folder: Path) -> np.ndarray:
        if note(folder, "make") > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.arange(float(N))

    with ZfastTaskRunner(max_workers=1, spares=0, max_worker_deaths=1) as runner:
        made = done(runner.submit(die_later, {"folder": tmp_path}))
        hosts.lose()
        taken = done(runner.submit(last, {"array": made, "folder": tmp_path}))
        assert taken.state.name == "NotReady"
        assert made.state.is_crashed()
        assert isinstance(made.state.data, WorkerDiedError)
    states_of(made.task_run_id, "Crashed")  # what its last worker said may have died with it


def test_a_result_that_is_lost_again_and_again_stays_lost(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    hosts.lose()
    hosts.lose_new = True
    taken = done(runner.submit(last, {"array": made, "folder": tmp_path}))
    assert taken.state.is_crashed()
    assert isinstance(taken.state.data, ResultLostError)
    assert WHY in taken.state.message
    assert f"made again {MAX_REMAKES} times" in taken.state.message
    assert notes_in(tmp_path) == [f"make-{n}" for n in range(1, MAX_REMAKES + 2)]
    with pytest.raises(ResultLostError):
        made.result()
    states_of(taken.task_run_id, "Crashed")


@pytest.mark.long
def test_after_the_runner_was_left_a_lost_result_stays_lost(hosts, tmp_path):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        made = done(runner.submit(make, {"folder": tmp_path}))
    hosts.lose()
    assert made.state.is_crashed()
    with pytest.raises(ResultLostError, match="host A"):
        made.result()


def test_in_a_fork_a_lost_result_stays_lost(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    hosts.lose()
    pid = os.fork()
    if not pid:
        os._exit(isinstance(made.state.data, ResultLostError))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert made.result()[-1] == N - 1


# ---- meanwhile ------------------------------------------------------------------------------


@task
def make_when_told(folder: Path) -> np.ndarray:
    """Once at once; then when a file appears."""
    if note(folder, "make") > 1:
        while not (folder / "go").exists():
            time.sleep(0.01)
    return np.arange(float(N))


def test_who_waits_for_so_long_only_may_come_again(hosts, runner, tmp_path):
    made = done(runner.submit(make_when_told, {"folder": tmp_path}))
    hosts.lose()
    with pytest.raises(TimeoutError, match="did not complete within"):
        made.result(timeout=0.1)
    (tmp_path / "go").touch()
    assert made.result(timeout=60)[-1] == N - 1
    assert len(list(tmp_path.glob("make-*"))) == 2


def test_a_result_that_is_on_its_way_is_waited_for_as_long_as_was_said(hosts, runner, tmp_path):
    made = done(runner.submit(make, {"folder": tmp_path}))
    segment = made._parcel.parts[0].segment
    segment.here.clear()
    read: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: read.put(made.result()))
    reader.start()  # this one waits for ever
    for timeout in (0, 0.1):
        with pytest.raises(TimeoutError, match="did not complete within"):
            made.result(timeout)
    segment.here.set()
    assert made.result(timeout=60) is read.get(timeout=60)
    reader.join()


@pytest.mark.long
def test_a_callback_after_the_end_may_wait_for_another_thread(hosts, runner, tmp_path):
    go = tmp_path / "go"
    upstream = runner.submit(wait_for_file, {"path": go})
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def callback(future: Any) -> None:
        """Has another thread read what was lost, and waits for it."""
        read: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=lambda: read.put(made.state)).start()
        answer.put((future.state.is_cancelled(), read.get(timeout=30).is_crashed()))

    with ZfastTaskRunner(max_workers=1, spares=0) as other:
        made = done(other.submit(make, {"folder": tmp_path}))
        waiting = other.submit(last, {"array": made, "folder": tmp_path}, wait_for=[upstream])
        waiting.add_done_callback(callback)
    hosts.lose()
    go.touch()
    assert answer.get(timeout=60) == (True, True)


@pytest.mark.long
def test_a_making_that_was_taken_back_leaves_nobody_waiting(hosts, tmp_path):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        made = done(runner.submit(make, {"folder": tmp_path}))
        held = runner.submit(wait_for_file, {"path": tmp_path / "go"})
        settled(lambda: (tmp_path / "go.begun").exists())
        states_of(made.task_run_id, "Completed")
        hosts.lose()
        read: queue.SimpleQueue[Any] = queue.SimpleQueue()
        reader = threading.Thread(target=lambda: read.put(made.state))
        reader.start()
        settled(lambda: runner._hub._dispatcher.n_queued == 1)
        runner.cancel_all()
        state = read.get(timeout=30)
        reader.join()
        assert isinstance(state.data, ResultLostError)
        (tmp_path / "go").touch()
        assert held.result() == "go"
    states_of(made.task_run_id, "Completed", "AwaitingRetry", "Completed")


def test_leaving_the_runner_waits_for_no_making_that_has_not_begun(hosts, tmp_path):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        third = chain(runner, tmp_path, make_when_told)
        hosts.lose()
        taken = runner.submit(last, {"array": third, "folder": tmp_path})
        settled(lambda: (tmp_path / "make-2").exists())
        # What begins the rest of the chain ends only once what waits has been taken back.
        waiting = runner.submit(wait_for_file, {"path": tmp_path / "never"})
        waiting.add_done_callback(lambda _: (tmp_path / "go").touch())
    assert waiting.state.is_cancelled()
    assert taken.state.is_cancelled()
    assert not (tmp_path / "third-2").exists()
    assert not (tmp_path / "last-1").exists()


def test_an_interrupt_ends_the_wait_for_what_is_made_again(hosts, tmp_path):
    read: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def interrupted() -> None:
        with ZfastTaskRunner(max_workers=1, spares=0) as runner:
            made = done(runner.submit(make_when_told, {"folder": tmp_path}))
            hosts.lose()
            threading.Thread(target=lambda: read.put(made.state)).start()
            settled(lambda: (tmp_path / "make-2").exists())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read.get(timeout=30).is_crashed()


def test_callbacks_that_read_lost_results_on_every_thread_do_not_hold_each_other_up(
    hosts, runner, tmp_path
):
    made = done(runner.submit(make_when_told, {"folder": tmp_path}))
    n = 2 * MAX_COMPLETIONS
    read: queue.SimpleQueue[float] = queue.SimpleQueue()
    started = threading.Semaphore(0)

    def callback(_: Any) -> None:
        started.release()
        read.put(float(made.result()[-1]))

    hosts.lose()
    for _ in range(n):
        runner.submit(wait_for_file, {"path": tmp_path / "start"}).add_done_callback(callback)
    (tmp_path / "start").touch()
    for _ in range(MAX_COMPLETIONS):  # by now all of them wait
        assert started.acquire(timeout=60)
    (tmp_path / "go").touch()
    assert [read.get(timeout=60) for _ in range(n)] == [N - 1] * n


# ---- memory ---------------------------------------------------------------------------------


def test_results_are_not_kept_to_be_made_again(hosts, runner, tmp_path):
    first = done(runner.submit(make, {"folder": tmp_path}))
    second = done(runner.submit(add, {"array": first, "folder": tmp_path, "name": "second"}))
    parcel = weakref.ref(first._parcel)
    del first
    settled(lambda: parcel() is None)
    parcel = weakref.ref(second._parcel)
    del second
    settled(lambda: parcel() is None)


def test_makings_go_with_their_futures(hosts, runner, tmp_path):
    third = chain(runner, tmp_path)
    makings = [weakref.ref(third.making), weakref.ref(third.making._upstream[0])]
    hosts.lose()
    assert runner.submit(last, {"array": third, "folder": tmp_path}).result() == N + 1
    del third
    settled(lambda: [making() for making in makings] == [None, None])


def test_what_was_read_is_not_remembered_either(hosts, runner, tmp_path):
    future = done(runner.submit(make, {"folder": tmp_path}))
    making = weakref.ref(future.making)
    assert future.result()[-1] == N - 1
    settled(lambda: making() is None)


def test_after_the_end_of_the_runner_nothing_is_remembered(hosts, tmp_path):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        third = chain(runner, tmp_path)
        second = weakref.ref(third.making._upstream[0])
    settled(lambda: second() is None)
    assert third.result()[-1] == N + 1


def test_of_what_lies_here_nothing_is_remembered(runner, tmp_path):
    gc.collect()
    gc.disable()
    try:
        before = set(map(id, (each for each in gc.get_objects() if type(each) is Making)))
        future = done(runner.submit(make, {"folder": tmp_path}))
        taken = runner.submit(add, {"array": future, "folder": tmp_path, "name": "add"})
        assert taken.result()[-1] == N
        settled(lambda: {id(each) for each in gc.get_objects() if type(each) is Making} <= before)
        assert future.making is None
    finally:
        gc.enable()
