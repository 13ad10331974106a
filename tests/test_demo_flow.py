"""The demo's flow on zfast, as Prefect's API sees it."""

from __future__ import annotations

import time

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.task_runners import ThreadPoolTaskRunner

from zfast import ZfastTaskRunner
from zfast.demo.flow import flight_delays


def run_on(runner):
    state = flight_delays.with_options(task_runner=runner)(n_years=1, return_state=True)
    return state.state_details.flow_run_id, state.result()


def recorded_task_runs(flow_run_id, count, timeout=60.0):
    """The task runs, once the API has recorded their last states."""
    deadline = time.monotonic() + timeout
    flow_filter = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_task_runs(flow_run_filter=flow_filter)
            if len(runs) == count and all(run.state and run.state.is_final() for run in runs):
                return runs
            assert time.monotonic() < deadline, [(run.name, run.state_name) for run in runs]
            time.sleep(0.2)


def logs_of(flow_run_id):
    with get_client(sync_client=True) as client:
        return client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), limit=200
        )


@pytest.mark.usefixtures("prefect_api")
def test_same_answer_as_threads_and_all_of_it_in_the_api():
    _, expected = run_on(ThreadPoolTaskRunner(max_workers=2))
    flow_run_id, answer = run_on(ZfastTaskRunner(max_workers=2))
    assert answer == expected

    runs = recorded_task_runs(flow_run_id, 8)
    by_task = {}
    for run in runs:
        by_task.setdefault(run.task_key.partition("-")[0], []).append(run)
    assert {task: len(runs) for task, runs in by_task.items()} == {
        "load_flights": 1,
        "load_weather": 1,
        "load_planes": 1,
        "join_quarter": 4,
        "summarise": 1,
    }
    assert all(run.state_name == "Completed" and run.run_count == 1 for run in runs)
    (flights,), (summary,) = by_task["load_flights"], by_task["summarise"]
    quarters = by_task["join_quarter"]
    for quarter in quarters:
        assert [upstream.id for upstream in quarter.task_inputs["flights"]] == [flights.id]
    upstream = {upstream.id for upstream in summary.task_inputs["quarters"]}
    assert upstream == {quarter.id for quarter in quarters}

    deadline = time.monotonic() + 30
    while True:
        finished = {
            log.task_run_id for log in logs_of(flow_run_id) if "Finished in state" in log.message
        } - {None}
        if finished == {run.id for run in runs}:
            break
        assert time.monotonic() < deadline, "logs are missing"
        time.sleep(0.2)
