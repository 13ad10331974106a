"""Results that are lost with their host, as a flow's author and Prefect's API see them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prefect import flow, get_client, task
from prefect.context import FlowRunContext, TaskRunContext

from foremen import free_port, joined, lost
from hub_jobs import settled
from test_task_runner import eventually
from zfast import ZfastTaskRunner

pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.skipif(
        not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
    ),
]
N = 500_000  # 4 MB
EXPECTED = N * (N - 1) // 2


@task
def make(journal: Any, key: str = "made", n: int = N) -> np.ndarray[Any, Any]:
    journal.note(key, "begin")
    return np.arange(n)


@task
def double(journal: Any, array: np.ndarray[Any, Any], key: str = "doubled") -> Any:
    journal.note(key, "begin")
    return array * 2


@task
def total(journal: Any, arrays: list[Any], key: str = "totalled") -> int:
    journal.note(key, "begin")
    return sum(int(array.sum()) for array in arrays)


@task
def wait_for(journal: Any, gate: Any, _: Any = None, key: str = "waited") -> int:
    """Ends when the test wants it to; how often it was begun, as the engine knows it."""
    journal.note(key, "begin")
    settled(gate.exists, 60)
    return TaskRunContext.get().task_run.run_count


class Stage:
    """One host at a time, on which all tasks of a flow run.

    Attributes:
        runner: Of the flow.
        hosts: The foremen of all hosts so far, the latest last.
    """

    def __init__(self, foremen, security):
        self._foremen = foremen
        self._endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.runner = ZfastTaskRunner(
            0, endpoint=self._endpoint, security=security, lease_s=3.0, max_worker_deaths=9
        )
        self.hosts = []
        self.join()

    def __reduce__(self):
        # A flow is pickled for its workers, with what it closes over: this is not for them.
        return str, ("stays with the test",)

    def join(self):
        self.hosts.append(self._foremen.start(self._endpoint))

    def replace(self):
        """Have the host die, and another take its place."""
        self.hosts[-1].kill()
        self.follow()

    def follow(self):
        """Have another host take the place of one that is on its way out."""
        jobs = SimpleNamespace(hub=FlowRunContext.get().task_runner._hub)
        leaving = self.hosts[-1]
        self.join()
        lost(jobs, leaving.pid)
        joined(jobs)


@pytest.fixture
def stage(foremen, security):
    return Stage(foremen, security)


def begun(journal):
    """How often each was begun."""
    keys = [key for key, what, *_ in journal.lines() if what == "begin"]
    return {key: keys.count(key) for key in keys}


def story(task_run_id, *names):
    """The states of a task run in the API, once they have these names; how often it began."""

    def read():
        with get_client(sync_client=True) as client:
            states = client.read_task_run_states(task_run_id)
            run = client.read_task_run(task_run_id)
        states.sort(key=lambda state: state.timestamp)
        # An attempt that the API knew nothing of when it began has a Pending too.
        states = [state for state in states if state.name != "Pending"]
        found = tuple(state.name for state in states)
        return (states, run) if found == names and run.state_name == names[-1] else None

    return eventually(read)


MADE_AGAIN = ("Running", "Completed", "AwaitingRetry", "Running", "Completed")


def test_a_result_that_is_lost_before_its_consumer_runs_is_made_again(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        made.wait()
        stage.replace()
        doubled = double.submit(journal, made)
        return doubled.result(), made.task_run_id, doubled.task_run_id

    array, made, doubled = body()
    assert np.array_equal(array, np.arange(N) * 2)
    assert begun(journal) == {"made": 2, "doubled": 1}
    states, run = story(made, *MADE_AGAIN)
    assert str(stage.hosts[0].pid) in states[2].message
    assert "lost" in states[2].message
    assert run.run_count == 2
    story(doubled, "Running", "Completed")


@pytest.mark.long
def test_the_flow_has_a_lost_result_made_again(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        made.wait()
        stage.replace()
        return made.result(), made.task_run_id

    array, made = body()
    assert np.array_equal(array, np.arange(N))
    assert begun(journal) == {"made": 2}
    story(made, *MADE_AGAIN)


@pytest.mark.long
def test_what_is_lost_again_is_made_again(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        for _ in range(2):
            made.wait()
            stage.replace()
            total.submit(journal, [made]).wait()
        stage.replace()
        return int(made.result().sum())

    assert body() == EXPECTED
    assert begun(journal) == {"made": 4, "totalled": 2}


@pytest.mark.long
@pytest.mark.parametrize("who", ["the flow", "a task"])
def test_a_chain_whose_middle_nobody_kept_is_made_again_from_its_start(stage, journal, who):
    @flow(task_runner=stage.runner)
    def body():
        last = double.submit(
            journal, double.submit(journal, make.submit(journal), key="second"), key="third"
        )
        last.wait()
        stage.replace()
        if who == "the flow":
            return int(last.result().sum())
        return total.submit(journal, [last]).result()

    assert body() == 4 * EXPECTED
    again = {"made": 2, "second": 2, "third": 2}
    assert begun(journal) == (again if who == "the flow" else {**again, "totalled": 1})


@pytest.mark.long
def test_what_many_need_is_made_again_once(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        branches = [double.submit(journal, made, key=f"branch-{n}") for n in range(4)]
        for branch in branches:
            branch.wait()
        stage.replace()
        sums = [total.submit(journal, [branch, made], key=f"sum-{n}") for n in "01"
                for branch in branches]  # fmt: skip
        return [each.result() for each in sums]

    assert body() == [3 * EXPECTED] * 8
    counts = begun(journal)
    assert counts.pop("made") == 2
    assert {counts.pop(f"branch-{n}") for n in range(4)} == {2}
    assert counts == {"sum-0": 4, "sum-1": 4}


@pytest.mark.long
def test_a_map_over_lost_results_has_them_made_again(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = [make.submit(journal, f"made-{n}", N + n) for n in range(3)]
        for each in made:
            each.wait()
        stage.replace()
        doubled = double.map(journal, made)
        return total.submit(journal, [*doubled, *made]).result()

    # A journal is no iterable: each of the mapped is given it.
    assert body() == 3 * sum((N + n) * (N + n - 1) // 2 for n in range(3))
    assert begun(journal) == {"made-0": 2, "made-1": 2, "made-2": 2, "doubled": 3, "totalled": 1}


@pytest.mark.long
def test_who_waits_in_the_queue_when_its_input_is_lost_gets_it_again(stage, journal, tmp_path):
    gate = tmp_path / "gate"

    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        made.wait()
        waiting = wait_for.submit(journal, gate)
        journal.wait_for("waited", "begin")
        doubled = double.submit(journal, made)
        stage.replace()
        gate.touch()
        return int(doubled.result().sum()), waiting.result()

    assert body() == (2 * EXPECTED, 2)
    assert begun(journal) == {"made": 2, "waited": 2, "doubled": 1}


@pytest.mark.long
def test_who_runs_on_the_lost_host_is_begun_again_with_its_input(stage, journal, tmp_path):
    gate = tmp_path / "gate"

    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        consumer = wait_for.submit(journal, gate, made)
        journal.wait_for("waited", "begin")
        stage.replace()
        gate.touch()
        return consumer.result(), made.task_run_id, consumer.task_run_id

    run_count, made, consumer = body()
    assert run_count == 2  # it goes on from its first attempt
    assert begun(journal) == {"made": 2, "waited": 2}
    story(made, *MADE_AGAIN)
    story(consumer, "Running", "AwaitingRetry", "Running", "Completed")


def test_a_persisted_result_is_found_and_not_made_again(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.with_options(persist_result=True).submit(journal)
        made.wait()
        stage.replace()
        return double.submit(journal, made).result(), made.result()

    doubled, array = body()
    assert np.array_equal(array, np.arange(N))
    assert np.array_equal(doubled, array * 2)
    assert begun(journal) == {"made": 1, "doubled": 1}


@pytest.mark.long
def test_what_fails_when_it_is_made_again_ends_as_its_own_failure_does(stage, journal):
    @task
    def make_once(journal):
        journal.note("made", "begin")
        if len(journal.lines("made", "begin")) > 1:
            raise ValueError("only once")
        return np.arange(N)

    @flow(task_runner=stage.runner)
    def body():
        made = make_once.submit(journal)
        made.wait()
        stage.replace()
        doubled = double.submit(journal, made)
        doubled.wait()
        with pytest.raises(ValueError, match="only once"):
            made.result()
        return doubled.state.name, made.task_run_id

    name, made = body()
    assert name == "NotReady"
    assert begun(journal) == {"made": 2}
    story(made, *MADE_AGAIN[:-1], "Failed")


@pytest.mark.long
def test_a_small_result_is_not_lost_with_its_host(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal, n=50_000)
        made.wait()
        stage.replace()
        return total.submit(journal, [made]).result(), len(made.result())

    assert body() == (50_000 * 49_999 // 2, 50_000)
    assert begun(journal) == {"made": 1, "totalled": 1}


@pytest.mark.long
def test_a_host_that_is_drained_takes_nothing_with_it(stage, journal):
    @flow(task_runner=stage.runner)
    def body():
        made = make.submit(journal)
        made.wait()
        stage.hosts[0].terminate()
        stage.follow()
        return total.submit(journal, [made]).result(), int(made.result().sum())

    assert body() == (EXPECTED, EXPECTED)
    assert stage.hosts[0].wait(30) == 0
    assert begun(journal) == {"made": 1, "totalled": 1}


def test_results_that_a_flow_returns_are_read_when_their_host_is_gone(stage, journal):
    @flow(task_runner=stage.runner, persist_result=False)
    def body():
        made = make.submit(journal)
        made.wait()
        return [made], double.submit(journal, made)

    (made,), doubled = body()
    stage.hosts[0].kill()
    made, doubled = (each.result() if hasattr(each, "result") else each for each in (made, doubled))
    assert np.array_equal(made, np.arange(N))
    assert np.array_equal(doubled, made * 2)
    assert begun(journal) == {"made": 1, "doubled": 1}
