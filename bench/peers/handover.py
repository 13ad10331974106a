"""The flow that times how a frame gets from the task that made it to the task that reads it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pandas as pd
from prefect import flow, task
from prefect.context import FlowRunContext

from bench.peers.handover_frames import MAKE, read_all
from bench.peers.tasks import WORKERS

#: The chain without a payload to speak of.
BASE_NBYTES = 800
MEET_TIMEOUT_S = 60.0

Chain = Callable[[str, int], "dict[str, float]"]
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
    """Take a worker, so that the consumer gets another."""


@task
def meet(folder: str, others: int) -> None:
    """Wait until as many others are here: each of them has a worker of its own."""
    tempfile.mkstemp(dir=folder)
    deadline = time.monotonic() + MEET_TIMEOUT_S
    while len(os.listdir(folder)) <= others:
        if time.monotonic() > deadline:
            raise TimeoutError("the runner does not run two tasks at once")
        time.sleep(0.01)


@flow
def handover(plan: dict[str, list[tuple[int, int]]], trials: int, unseen: int) -> dict[str, float]:
    """Run chains of a producer and a consumer, one chain at a time, the sizes in turn.

    Args:
        plan: For each kind of memory, sizes in bytes and how many chains of each.
        trials: How often to try each way to get the two tasks of a chain apart.
        unseen: Chains of each kind and size that come first and do not count: memory that has
            been used before is what a worker has most of its life.

    Returns:
        By "what kind nbytes": the median of the chains' seconds from the producer's end to the
        consumer's start ("start") and to its having read all ("read"), and the share of chains in
        which the two were different processes ("elsewhere"). Chains within one process count only
        where there are no others.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Some runners start a worker only when there is work for one more.
        for future in [meet.submit(folder, WORKERS - 1) for _ in range(WORKERS)]:
            future.result()
    run_chain = _way_apart(trials)
    for kind, sizes in plan.items():
        for nbytes, _ in sizes:
            for _ in range(unseen):
                run_chain(kind, nbytes)
    done: dict[tuple[str, int], list[dict[str, float]]] = {}
    for kind, nbytes in _in_turn(plan):
        done.setdefault((kind, nbytes), []).append(run_chain(kind, nbytes))
    measured: dict[str, float] = {}
    for (kind, nbytes), chains in done.items():
        share = sum(chain["elsewhere"] for chain in chains) / len(chains)
        if share:
            chains = [chain for chain in chains if chain["elsewhere"]]
        for what in ("start", "read"):
            measured[f"{what} {kind} {nbytes}"] = median(chain[what] for chain in chains)
        measured[f"elsewhere {kind} {nbytes}"] = share
    return measured


def _in_turn(plan: dict[str, list[tuple[int, int]]]) -> list[tuple[str, int]]:
    """Kinds and sizes in turns, so that what slows the machine for a while slows them all."""
    left = [(kind, *size) for kind, sizes in plan.items() for size in sizes]
    most = max(count for _, _, count in left)
    return [
        (kind, nbytes)
        for turn in range(most)
        for kind, nbytes, count in left
        # Spread evenly, however many chains each has.
        if (turn + 1) * count // most > turn * count // most
    ]


def _way_apart(trials: int) -> Chain:
    """The way to submit a chain that most often gets its two tasks into different processes.

    Found by trying, which also warms the workers up: runners differ in which worker is next.
    """
    ways: list[Chain] = [_chain, _occupied_first, _occupied_after]
    context: Any = FlowRunContext.get()
    if type(context.task_runner).__name__ == "DaskTaskRunner":
        # Left alone, Dask runs both where the frame is.
        ways = [_placed]
    shares = [sum(way("numpy", BASE_NBYTES)["elsewhere"] for _ in range(trials)) for way in ways]
    return ways[shares.index(max(shares))]


def _chain(kind: str, nbytes: int) -> dict[str, float]:
    consumed: dict[str, float] = consume.submit(produce.submit(kind, nbytes)).result()
    return consumed


def _occupied_first(kind: str, nbytes: int) -> dict[str, float]:
    made = produce.submit(kind, nbytes)
    occupant = occupy.submit(wait_for=[made])
    consumed: dict[str, float] = consume.submit(made).result()
    occupant.result()
    return consumed


def _occupied_after(kind: str, nbytes: int) -> dict[str, float]:
    made = produce.submit(kind, nbytes)
    consumer = consume.submit(made)
    occupy.submit(wait_for=[made]).result()
    consumed: dict[str, float] = consumer.result()
    return consumed


def _placed(kind: str, nbytes: int) -> dict[str, float]:
    import dask

    context: Any = FlowRunContext.get()
    workers = sorted(context.task_runner.client.scheduler_info()["workers"])
    with dask.annotate(workers=workers[:1]):
        made = produce.submit(kind, nbytes)
    with dask.annotate(workers=workers[1:]):
        consumed: dict[str, float] = consume.submit(made).result()
    return consumed
