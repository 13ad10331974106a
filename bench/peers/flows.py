"""The flows that are measured, in a module that every runner's workers can import."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events.worker import EventsWorker

from bench.peers.tasks import WORKERS

COLUMNS = 10
MAKERS = 4
#: Each worker has imported what it needs before the time counts.
WARMUP_TASKS = 8


@task
def noop(i: int) -> int:
    return i


def _make_frame(seed: int, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({f"column{i}": rng.random(rows) for i in range(COLUMNS)})


def _mean_of_all(frames: list[pd.DataFrame]) -> float:
    return float(np.mean([frame[name].mean() for frame in frames for name in frame.columns]))


make_frame = task(_make_frame, name="make_frame")
mean_of_all = task(_mean_of_all, name="mean_of_all")
make_frame_uncached = task(_make_frame, name="make_frame", cache_policy=NO_CACHE)
mean_of_all_uncached = task(_mean_of_all, name="mean_of_all", cache_policy=NO_CACHE)


@task
def hold(seconds: float) -> None:
    time.sleep(seconds)


@flow
def noop_tasks(count: int, warmup_s: float) -> dict[str, float]:
    """Seconds a task, of so many in one map on workers that are all there and warm.

    Returns:
        Until the last result, and until the states of all are on their way to the API. Prefect's
        thread pool, and its process pool, leave them in a queue of the flow's process.
    """
    for future in [hold.submit(warmup_s / 2) for _ in range(WORKERS)]:
        future.result()
    time.sleep(warmup_s / 2)
    for future in [noop.submit(i) for i in range(WARMUP_TASKS)]:
        future.result()
    EventsWorker.instance().wait_until_empty()
    start = time.perf_counter()
    results = noop.map(range(count)).result()
    seconds = time.perf_counter() - start
    EventsWorker.instance().wait_until_empty()
    seconds_to_sent = time.perf_counter() - start
    if results != list(range(count)):
        raise ValueError("wrong results")
    return {"seconds": seconds / count, "states sent": seconds_to_sent / count}


@flow
def frames(rows: int) -> dict[str, float]:
    """Four tasks make frames, one reads them all: with the default cache policy, and with none.

    Returns:
        Seconds from the first submit to the result of the reduction, by policy: "plain" and
        "NO_CACHE".
    """
    return {
        "plain": _make_and_reduce(make_frame, mean_of_all, rows),
        "NO_CACHE": _make_and_reduce(make_frame_uncached, mean_of_all_uncached, rows),
    }


def _make_and_reduce(make: Any, reduce: Any, rows: int) -> float:
    # Two of these at once, so that each worker has imported pandas.
    warmup = [make.submit(seed, 10) for seed in range(WARMUP_TASKS)]
    for future in [reduce.submit(warmup), reduce.submit(warmup)]:
        future.result()
    start = time.perf_counter()
    made = [make.submit(seed, rows) for seed in range(MAKERS)]
    mean: float = reduce.submit(made).result()
    seconds = time.perf_counter() - start
    if abs(mean - 0.5) > 0.05:
        raise ValueError(f"wrong mean: {mean}")
    return seconds
