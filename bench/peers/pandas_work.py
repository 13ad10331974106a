"""pandas work whose time page faults rule, in a task and in a plain process.

Run: ``pandas_work`` for the plain process. A command gives the rows and the repetitions.
"""

from __future__ import annotations

import resource
import time
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow, task

from bench.peers.control import serve

COLUMNS = "abcdefghij"


def work(rows: int) -> pd.DataFrame:
    """Make a frame, and make others from it: arithmetic, concat, sort, a new column."""
    values = np.random.default_rng(0).random((rows, len(COLUMNS)))
    frame = pd.DataFrame(values, columns=list(COLUMNS))
    doubled = frame * 2 + 1
    both = pd.concat([frame, doubled]).sort_values("a")
    return both.assign(k=(both["a"] * 100).astype(int))


def timed_work(rows: int, repetitions: int) -> dict[str, float]:
    """Do the work once unseen, then time it; medians of the repetitions."""
    work(rows)
    seconds, faults = [], []
    for _ in range(repetitions):
        faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        result = work(rows)
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before)
        if len(result) != 2 * rows or not result["a"].is_monotonic_increasing:
            raise ValueError("wrong result")
        del result
    return {"seconds": median(seconds), "minor_faults": median(faults)}


timed_work_task = task(timed_work, name="timed_work")


@flow
def in_a_task(rows: int, repetitions: int) -> dict[str, float]:
    """The same in a task; the time is taken inside of it."""
    measured: dict[str, float] = timed_work_task.submit(rows, repetitions).result()
    return measured


def answer(command: dict[str, Any]) -> dict[str, float]:
    return timed_work(command["rows"], command["repetitions"])


if __name__ == "__main__":
    serve(answer)
