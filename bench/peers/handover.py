"""The flow that times how a frame gets from the task that made it to the task that reads it."""

from __future__ import annotations

import math
import os
import time
from functools import partial
from statistics import median
from typing import Any

import pandas as pd
from prefect import flow, task
from prefect.context import FlowRunContext

from bench.peers.handover_frames import MAKE, read_all

#: The chain without a payload to speak of.
BASE_NBYTES = 800
#: Each worker has imported what it needs before the time counts.
WARMUP_CHAINS = 3

Made = tuple[pd.DataFrame, float, int, int]


@task
def produce(kind: str, nbytes: int) -> Made:
    """Make a frame; the last thing it does is to look at the clock."""
    frame = MAKE[kind](nbytes)
    total, pid = read_all(frame), os.getpid()
    return frame, total, pid, time.monotonic_ns()


@task
def consume(made: Made) -> dict[str, float]:
    """Look at the clock first; then read everything, and look again."""
    started = time.monotonic_ns()
    frame, total, pid, ended = made
    right = math.isclose(read_all(frame), total)
    has_read = time.monotonic_ns()
    if not right:
        raise ValueError("the frame received is not the one that was made")
    return {
        "start": (started - ended) / 1e9,
        "read": (has_read - ended) / 1e9,
        "elsewhere": float(os.getpid() != pid),
    }


@task
def occupy() -> None:
    """Take the worker that the producer leaves, so that the consumer finds another."""


@flow
def handover(plan: dict[str, list[tuple[int, int]]], apart: str | None) -> dict[str, float]:
    """Run chains of a producer and a consumer, one chain at a time.

    Args:
        plan: For each kind of memory, sizes in bytes and how many chains of each.
        apart: How to get producer and consumer into different processes: "occupy" the worker that
            the producer leaves with a third task, "place" them as only Dask can, or not at all.

    Returns:
        By "what kind nbytes": the median of the chains' seconds from the producer's end to the
        consumer's start ("start") and to its having read all ("read"), and the share of chains in
        which the two were different processes ("elsewhere"). Chains within one process count only
        where there are no others.
    """
    run_chain = _placed_chain if apart == "place" else partial(_chain, apart == "occupy")
    for _ in range(WARMUP_CHAINS):
        run_chain("numpy", BASE_NBYTES)
    measured: dict[str, float] = {}
    for kind, sizes in plan.items():
        for nbytes, count in sizes:
            chains = [run_chain(kind, nbytes) for _ in range(count)]
            share = sum(chain["elsewhere"] for chain in chains) / count
            if share:
                chains = [chain for chain in chains if chain["elsewhere"]]
            for what in ("start", "read"):
                measured[f"{what} {kind} {nbytes}"] = median(chain[what] for chain in chains)
            measured[f"elsewhere {kind} {nbytes}"] = share
    return measured


def _chain(occupied: bool, kind: str, nbytes: int) -> dict[str, float]:
    made = produce.submit(kind, nbytes)
    occupant = occupy.submit(wait_for=[made]) if occupied else None
    consumed: dict[str, float] = consume.submit(made).result()
    if occupant:
        occupant.result()
    return consumed


def _placed_chain(kind: str, nbytes: int) -> dict[str, float]:
    import dask

    context: Any = FlowRunContext.get()
    workers = sorted(context.task_runner.client.scheduler_info()["workers"])
    with dask.annotate(workers=workers[:1]):
        made = produce.submit(kind, nbytes)
    with dask.annotate(workers=workers[1:]):
        consumed: dict[str, float] = consume.submit(made).result()
    return consumed
