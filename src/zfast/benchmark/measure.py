"""Rounds of both sides of a row, in turns, and the results as they are kept."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import msgspec
import psutil
import zmq

from zfast.benchmark.limits import Limit
from zfast.benchmark.rows import CoreRow
from zfast.benchmark.statistics import median_interval, paired_ratios
from zfast.errors import ZfastError

PACKAGES = ("zfast", "pyzmq", "numpy", "msgspec", "pandas", "pyarrow", "prefect")
#: How often an interval of a ratio does not hold it.
ERROR = 0.05
WARMUP_ROUNDS = 2
#: What a row may take, warm-up and all. It then has fewer rounds.
ROW_LIMIT_S = 12.0
MIN_ROUNDS = 3


class RowResult(msgspec.Struct):
    """What came of a row. Seconds are those of a round, in the order they were measured.

    Attributes:
        speedup: How many times as fast as the reference: the median over the pairs.
        low, high: Its 95 % confidence interval; None with too few rounds.
        lost: Why there are no figures.
    """

    name: str
    reference: str
    limited_by: str
    work: float
    unit: str
    reference_s: list[float] = []
    zfast_s: list[float] = []
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    lost: str | None = None


class BenchResult(msgspec.Struct):
    """All that a run says; what is written as JSON."""

    when: str
    machine: dict[str, str]
    versions: dict[str, str]
    limits: list[Limit]
    rows: list[RowResult]
    small: bool = False


def run_row(row: CoreRow, on_round: Callable[[int, int], None]) -> RowResult:
    """Measure one row; a side that fails loses the row, not the run.

    Args:
        on_round: Called with rounds done and wanted.
    """
    result = RowResult(row.name, row.reference, row.limited_by, row.work, row.unit)
    end_s = time.monotonic() + ROW_LIMIT_S
    try:
        with ExitStack() as stack:
            sides = [
                stack.enter_context(closing(opener()))
                for opener in (row.open_reference, row.open_zfast)
            ]
            kept = [result.reference_s, result.zfast_s]
            for i in range(-WARMUP_ROUNDS, row.rounds):
                order = (0, 1) if i % 2 else (1, 0)
                for side in order:
                    seconds = sides[side].round()
                    if i >= 0:
                        kept[side].append(seconds)
                on_round(max(0, i + 1), row.rounds)
                if i + 1 >= MIN_ROUNDS and time.monotonic() > end_s:
                    break
    except (ZfastError, OSError, zmq.ZMQError) as error:
        result.lost = f"{type(error).__name__}: {error}"
        return result
    ratios = paired_ratios(result.zfast_s, result.reference_s)
    result.speedup = median(ratios)
    result.low, result.high = median_interval(ratios, ERROR) or (None, None)
    return result


def new_result(limits: list[Limit], small: bool) -> BenchResult:
    """A result without rows: the machine, the versions and the limits."""
    return BenchResult(
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        _machine(),
        _versions(),
        limits,
        [],
        small,
    )


def _machine() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cores": str(cores),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _versions() -> dict[str, str]:
    found = {"libzmq": zmq.zmq_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
