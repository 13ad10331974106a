"""Results of tasks in shared memory, as a flow's author meets them: never wrong, never kept."""

from __future__ import annotations

import builtins
import gc
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect import flow, task, unmapped
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from hub_jobs import settled
from zfast import ZfastTaskRunner, arena

pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.skipif(
        not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
    ),
]
ROWS = 500_000


def runner(max_workers: int = 1) -> ZfastTaskRunner:
    return ZfastTaskRunner(max_workers=max_workers)


def peer_segments() -> set[str]:
    """The segments of other processes that this one has mapped: read-only, unlike its own."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line for line in lines if " r--s " in line and "memfd:" in line}


@task
def make(rows: int = ROWS) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(float(rows)), "b": np.ones(rows)})


@task
def is_born_here(frame: pd.DataFrame) -> tuple[bool, bool]:
    address = frame["a"].to_numpy().__array_interface__["data"][0]
    return arena.owns(address), bool(frame["a"].to_numpy().flags.writeable)


@task
def total(frame: pd.DataFrame) -> float:
    return float(frame["a"].sum() + frame["b"].sum())


EXPECTED = ROWS * (ROWS - 1) / 2 + ROWS


def test_a_frame_made_in_a_task_is_read_where_it_is() -> None:
    @flow(task_runner=runner())
    def run() -> Any:
        frame = make.submit()
        return is_born_here.submit(frame).result(), total.submit(frame).result()

    assert run() == ((True, False), EXPECTED)


def test_the_driver_maps_only_what_it_reads() -> None:
    gc.collect()
    before = peer_segments()

    @flow(task_runner=runner())
    def run() -> tuple[bool, int, float]:
        frame = make.submit()
        frame.wait()
        total.submit(frame).wait()
        mapped_early = not peer_segments() <= before
        value = frame.result()
        return mapped_early, len(peer_segments() - before), float(value["b"].sum())

    def has_let_go() -> bool:
        gc.collect()
        return peer_segments() <= before

    assert run() == (False, 1, ROWS)
    settled(has_let_go)


def test_what_a_task_keeps_it_may_change() -> None:
    @task
    def keep(rows: int) -> np.ndarray[Any, Any]:
        builtins.kept = np.ones(rows)  # type: ignore[attr-defined]
        return builtins.kept  # type: ignore[attr-defined,no-any-return]

    @task
    def change() -> float:
        builtins.kept[:] = 7  # type: ignore[attr-defined]
        return float(builtins.kept.sum())  # type: ignore[attr-defined]

    @flow(task_runner=runner())
    def run() -> tuple[float, float]:
        array = keep.submit(ROWS)
        array.wait()
        return change.submit().result(), float(array.result().sum())

    assert run() == (7 * ROWS, ROWS)


def test_a_kept_frame_is_changed_without_harm() -> None:
    @task
    def keep() -> pd.DataFrame:
        frame = pd.DataFrame({"a": np.arange(float(ROWS)), "b": np.ones(ROWS)})
        builtins.kept = frame  # type: ignore[attr-defined]
        return frame

    @task
    def change() -> float:
        frame = builtins.kept  # type: ignore[attr-defined]
        frame.loc[:, "a"] = 0.0
        frame.iloc[0, 1] = -1.0
        frame["b"] += 1
        return float(frame["a"].sum())

    @flow(task_runner=runner())
    def run() -> tuple[float, float]:
        frame = keep.submit()
        frame.wait()
        return change.submit().result(), total.submit(frame).result()

    assert run() == (0, EXPECTED)


def test_a_received_frame_is_changed_without_harm() -> None:
    @task
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame["c"] = frame["a"] * 2
        frame.loc[0, "a"] = 1e9
        frame.fillna(0, inplace=True)
        return frame

    @flow(task_runner=runner(2))
    def run() -> Any:
        frame = make.submit()
        changed = change.submit(frame).result()
        changed.loc[1, "b"] = 5.0
        return float(changed["a"].max()), float(changed["c"].sum()), total.submit(frame).result()

    assert run() == (1e9, ROWS * (ROWS - 1), EXPECTED)


def test_a_hook_changes_the_frame_as_with_other_runners(tmp_path: Path) -> None:
    def hook(_task: Any, _run: Any, state: Any) -> None:
        frame = state.result()
        frame.loc[0, "b"] = 100.0
        (tmp_path / "seen").write_text(str(float(frame["b"].sum())))

    hooked = make.with_options(on_completion=[hook])

    @flow(task_runner=runner())
    def run() -> float:
        return float(total.submit(hooked.submit()).result())

    assert run() == EXPECTED + 99
    assert float((tmp_path / "seen").read_text()) == ROWS + 99


@pytest.mark.parametrize("policy", [NO_CACHE, INPUTS])
def test_a_persisted_result_in_the_workers_cache_stays_right(policy: Any) -> None:
    cached = make.with_options(persist_result=True, cache_policy=policy)

    @task
    def spoil(frame: pd.DataFrame) -> None:
        frame.iloc[:, :] = 0.0

    @flow(task_runner=runner())
    def run() -> list[float]:
        first = cached.submit()
        spoil.submit(first).wait()
        return [total.submit(first).result(), total.submit(cached.submit()).result()]

    assert run() == [EXPECTED, EXPECTED]


def test_memory_is_free_again_when_nobody_needs_it() -> None:
    nbytes = 50_000_000

    @task(persist_result=False)
    def big(i: int) -> np.ndarray[Any, Any]:
        return np.full(nbytes // 8, float(i))

    @task
    def last(array: np.ndarray[Any, Any]) -> tuple[float, int]:
        return float(array[-1]), arena.statistics().peak_mapped_nbytes

    @flow(task_runner=runner())
    def run() -> list[tuple[float, int]]:
        return [last.submit(big.submit(i)).result() for i in range(20)]

    results = run()
    assert [value for value, _ in results] == list(range(20))
    # At most: the one that is read, the one that is made, and one that Prefect's services hold.
    assert results[-1][1] <= 5 * nbytes


def test_a_result_outlives_its_worker() -> None:
    @task
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @flow(task_runner=runner())
    def run() -> tuple[float, float]:
        frame = make.submit()
        frame.wait()
        die.submit().wait()
        return total.submit(frame).result(), float(frame.result()["a"].iloc[-1])

    assert run() == (EXPECTED, ROWS - 1)


def test_a_result_goes_on_to_another_runner_and_back() -> None:
    @flow(task_runner=runner())
    def inner(frame: pd.DataFrame) -> pd.DataFrame:
        doubled = task(lambda f: f * 2).submit(frame)
        return doubled.result()

    @flow(task_runner=runner())
    def run() -> float:
        frame = inner(make.submit())
        return float(total.submit(frame).result())

    assert run() == 2 * EXPECTED


def test_a_mapped_parameter_is_copied_once() -> None:
    @task
    def part(array: np.ndarray[Any, Any], i: int) -> float:
        return float(array[i])

    @flow(task_runner=runner(2))
    def run() -> Any:
        before = arena.statistics().n_allocations
        array = np.arange(float(ROWS))
        futures = part.map(unmapped(array), range(10))
        array[:] = -1
        return futures.result(), arena.statistics().n_allocations - before

    assert run() == ([float(i) for i in range(10)], 1)


def test_results_are_read_after_the_flow_run() -> None:
    @flow(task_runner=runner(), persist_result=False)
    def run() -> Any:
        return make.submit(), make.submit(1000)

    first, second = run()
    assert len(first.result() if hasattr(first, "result") else first) == ROWS
    assert len(second.result() if hasattr(second, "result") else second) == 1000


@task
def same(value: Any) -> Any:
    return value


def test_what_a_task_that_submits_was_given_is_freed_when_it_ends() -> None:
    @task
    def outer(array: np.ndarray[Any, Any]) -> int:
        vars(builtins).setdefault("given", []).append(weakref.ref(array))
        return sum(same.map([1, 2]).result())

    @task
    def count_alive() -> list[bool]:
        gc.collect()
        return [reference() is not None for reference in vars(builtins)["given"]]

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def run() -> tuple[list[int], list[bool]]:
        sums = [outer.submit(np.ones(ROWS)).result() for _ in range(5)]
        return sums, count_alive.submit().result()

    sums, alive = run()
    assert sums == [3] * 5
    # What Prefect's services hold for a moment: timers of a new connection, the last event.
    assert sum(alive) <= 2


def test_what_a_task_that_submits_was_given_is_not_sent_on() -> None:
    @task
    def outer(given: bytes) -> tuple[list[bool], bool]:
        same.submit(1).wait()
        runner: Any = FlowRunContext.get().task_runner  # type: ignore[union-attr]
        sent = [blob.data for _, blob in runner._shipper._contexts.values()]
        reported_in = runner._reporter._context
        return [given in each for each in sent], reported_in[TaskRunContext.__var__] is None

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def run() -> Any:
        return outer.submit(os.urandom(64)).result()

    assert run() == ([False], True)
