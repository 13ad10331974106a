"""Which runs and assets the API is told a task run takes, wherever it and they ran."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect import flow, task
from prefect.assets import Asset, materialize
from prefect.context import FlowRunContext

from test_task_runner import eventually, finished_task_runs, identity, task_runs
from test_task_semantics import events_of
from zfast import ZfastTaskRunner
from zfast.prefect.internals.known_results import MAX_PARTS

pytestmark = pytest.mark.usefixtures("prefect_api")

RAW, CLEAN, MODEL = (f"s3://data/{name}" for name in ("raw", "clean", "model"))


@task
def hold(folder: Path) -> None:
    """Keep a worker busy."""
    (folder / "held").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


@materialize(RAW)
def extract() -> int:
    return 1


@materialize(CLEAN)
def refine(value: int) -> int:
    return value + 1


@task
def pick(value: int) -> int:
    return value


@materialize(MODEL, asset_deps=[Asset(key="s3://data/prior")])
def train(value: int) -> int:
    return value


def test_assets_follow_results_from_worker_to_worker(tmp_path):
    run_ids = []

    @flow(task_runner=ZfastTaskRunner(max_workers=2, spares=0))
    def body() -> Any:
        run_ids.append(FlowRunContext.get().flow_run.id)
        raw = extract.submit()
        raw.wait()
        held = hold.submit(tmp_path)  # by the worker that has done what there was to do
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        clean = refine.submit(raw)
        picked = pick.map([clean])  # makes no asset: it hands on those that it takes
        train.submit(0, wait_for=picked).wait()
        assert not held.wrapped_future.done()
        (tmp_path / "go").touch()
        return held.result()

    body()

    def told():
        found = events_of(run_ids[0], "prefect.asset.")
        return found if len(found) >= 6 else None

    seen = {
        (
            event["event"].removeprefix("prefect.asset."),
            event["resource"]["prefect.resource.id"],
            *sorted(
                each["prefect.resource.id"]
                for each in event["related"]
                if each["prefect.resource.role"] == "asset"
            ),
        )
        for event in eventually(told)
    }
    assert seen == {
        ("materialization.succeeded", RAW),
        ("referenced", RAW),
        ("materialization.succeeded", CLEAN, RAW),
        ("referenced", CLEAN),
        ("referenced", "s3://data/prior"),
        ("materialization.succeeded", MODEL, CLEAN, "s3://data/prior"),
    }


@task
def make_frame() -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(3.0)})


@task
def make_pair() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(3), np.arange(4)


@task
def here() -> list[int]:
    return [1000]


@task
def total(values: Any) -> float:
    return float(np.sum(np.asarray(values)))


def test_what_takes_a_value_takes_the_task_run_that_made_it():
    run_ids = []

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def body() -> None:
        run_ids.append(FlowRunContext.get().flow_run.id)
        frame, (_, second) = make_frame.submit().result(), make_pair.submit().result()
        listed = here()  # in the flow's own process
        total.submit(frame).wait()
        identity.submit([second, {"of the flow": listed}], wait_for=[frame]).wait()
        known = FlowRunContext.get().run_results
        n_known = len(known)
        del frame, second, _
        gc.collect()
        assert len(known) < n_known  # nothing is kept of what is gone

    body()
    runs = finished_task_runs(run_ids[0], 5)

    def inputs(name, parameter):
        return {each.id for each in runs[name].task_inputs[parameter]}

    assert inputs("total", "values") == {runs["make_frame"].id}
    assert inputs("identity", "value") == {runs["make_pair"].id, runs["here"].id}
    assert inputs("identity", "wait_for") == {runs["make_frame"].id}


@pytest.mark.parametrize("n", [MAX_PARTS // 2, 2 * MAX_PARTS])
def test_a_long_list_is_looked_through_for_futures_alone(n):
    run_ids = []

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def body() -> None:
        run_ids.append(FlowRunContext.get().flow_run.id)
        frame, made = make_frame.submit().result(), make_pair.submit()
        identity.submit([[frame, made, *range(n)]]).wait()

    body()
    runs = finished_task_runs(run_ids[0], 3)
    found = {each.id for each in runs["identity"].task_inputs["value"]}
    wanted = {runs["make_pair"].id} | ({runs["make_frame"].id} if n < MAX_PARTS else set())
    assert found == wanted


def test_what_comes_to_be_where_a_result_was_is_not_taken_for_it():
    run_ids = []

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def body() -> None:
        run_ids.append(FlowRunContext.get().flow_run.id)
        for number in range(10):
            assert identity.submit([number, 1000.5]).result() == [number, 1000.5]
            assert not FlowRunContext.get().run_results

    body()
    runs = eventually(lambda: len(runs := task_runs(run_ids[0])) == 10 and runs)
    assert all(not run.task_inputs["value"] for run in runs)
