"""What the API is told of task runs that no engine, or a crashing one, brought to their end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from test_task_runner import eventually, identity, task_runs
from test_task_semantics import events_of
from zfast import ZfastTaskRunner
from zfast.errors import WorkerError

pytestmark = pytest.mark.usefixtures("prefect_api")

flow_run_ids: list[Any] = []


def ended(future):
    future.wait()
    return future


def as_told(task_run_id):
    """The task run as the API has it, once it has it at its end."""

    def read():
        (run,) = [r for r in task_runs(flow_run_ids[-1]) if r.id == task_run_id] or [None]
        return run if run and (run.state.is_final() or run.state_name == "NotReady") else None

    return eventually(read)


def states_of(task_run_id):
    with get_client(sync_client=True) as client:
        states = client.read_task_run_states(task_run_id)
    return [state.name for state in sorted(states, key=lambda state: state.timestamp)]


def run(body, **settings):
    """What ``body`` gives in a flow, which would fail by a future of a task run that crashed."""
    found = []

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0, **settings))
    def noted() -> None:
        flow_run_ids.append(FlowRunContext.get().flow_run.id)
        found.append(body())

    noted()
    return found[0]


def test_what_is_never_sent_is_told_and_named_by_those_that_take_it():
    def body():
        future = identity.submit(threading.Lock())
        return future.state, future.task_run_id, ended(identity.submit(future))

    state, task_run_id, downstream = run(body)
    assert state.state_details.task_run_id == task_run_id
    assert state.state_details.flow_run_id == flow_run_ids[-1]
    assert str(task_run_id) in downstream.state.message
    told = as_told(task_run_id)
    assert (told.state_name, told.state.message) == ("Crashed", state.message)
    assert [i.id for i in as_told(downstream.task_run_id).task_inputs["value"]] == [task_run_id]


def test_what_takes_a_result_that_cannot_be_sent_on_is_told():
    @task
    def locked() -> Any:
        return threading.Lock()

    def body():
        with ThreadPoolTaskRunner() as threads:
            return ended(identity.submit(threads.submit(locked, {})))

    future = run(body)
    assert "cannot be sent on" in future.state.message
    told = as_told(future.task_run_id)
    assert (told.state_name, told.state.message) == ("Crashed", future.state.message)


def test_many_that_are_never_sent_are_told_before_the_flow_ends():
    futures = run(lambda: identity.map([threading.Lock() for _ in range(100)]))
    told = eventually(lambda: len(runs := task_runs(flow_run_ids[-1])) == 100 and runs)
    assert {run.id for run in told} == {future.task_run_id for future in futures}
    assert {run.state_name for run in told} == {"Crashed"}


@task
def die_when_known() -> None:
    task_run = TaskRunContext.get().task_run
    eventually(lambda: [r for r in task_runs(task_run.flow_run_id) if r.state_name == "Running"])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_crash_has_an_end_and_a_duration():
    future = run(lambda: ended(die_when_known.submit()), max_worker_deaths=1)
    details = future.state.state_details
    assert (details.task_run_id, details.flow_run_id) == (future.task_run_id, flow_run_ids[-1])
    told = as_told(future.task_run_id)
    assert told.state_name == "Crashed"
    assert told.end_time == told.state.timestamp
    assert told.total_run_time == told.end_time - told.start_time > timedelta(0)


def test_what_is_cancelled_while_it_waits_to_run_again_has_an_end_and_a_duration(tmp_path):
    def starting(folder: Path) -> None:
        """The worker after the one that dies does not get ready before it may."""
        if (folder / "begun").exists():
            eventually((folder / "go").exists)
        (folder / "begun").touch()

    def body():
        future = die_when_known.submit()
        eventually(
            lambda: [r for r in task_runs(flow_run_ids[-1]) if r.state_name == "AwaitingRetry"]
        )
        FlowRunContext.get().task_runner.cancel_all()
        future.wait()
        (tmp_path / "go").touch()
        return future

    future = run(body, initializer=starting, initargs=(tmp_path,))
    assert future.state.is_cancelled()
    assert future.state.state_details.task_run_id == future.task_run_id
    told = as_told(future.task_run_id)
    assert told.state_name == "Cancelled"
    assert told.end_time == told.state.timestamp
    assert timedelta(0) < told.total_run_time <= told.end_time - told.start_time


def test_what_ends_a_task_and_no_worker_is_told_once():
    @task
    def end(kind: type[BaseException]) -> None:
        raise kind("now")

    @task
    async def end_async(kind: type[BaseException]) -> None:
        raise kind("now")

    kinds = [SystemExit, KeyboardInterrupt, asyncio.CancelledError]

    def body():
        futures = [*end.map(kinds), *end_async.map(kinds)]
        for future, kind in zip(futures, kinds * 2, strict=True):
            assert ended(future).state.is_crashed()
            with pytest.raises(WorkerError, match=f"{kind.__name__}: now") as caught:
                future.result()
            assert ", in end" in str(getattr(caught.value, "__notes__", caught.value))
        return [future.task_run_id for future in futures]

    task_run_ids = run(body)
    for task_run_id in task_run_ids:
        assert as_told(task_run_id).state_name == "Crashed"
    # The runner has been left: the driver, too, has said what it had to say, and the API takes
    # events in their order.
    run(lambda: identity.submit(1).result())
    eventually(lambda: events_of(flow_run_ids[-1], "prefect.task-run.Completed"))
    events = events_of(flow_run_ids[-2], "prefect.task-run.Crashed")
    told = [event["resource"]["prefect.resource.id"] for event in events]
    assert sorted(told) == sorted(f"prefect.task-run.{each}" for each in task_run_ids)
    for task_run_id in task_run_ids:
        assert states_of(task_run_id) == ["Pending", "Running", "Crashed"]
