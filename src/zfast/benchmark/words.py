"""Figures as a person reads them, and what they say of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from zfast.benchmark.limits import Limit
from zfast.benchmark.measure import BenchResult, RowResult

#: Fresh memory costs so many times a warm copy: then page faults are what counts.
DEAR_FAULTS = 1.5


def format_rate(row: RowResult, seconds: Sequence[float]) -> str:
    """What one side does in a second, or what one piece of work takes."""
    if not seconds:
        return "–"
    rate = row.work / median(seconds)
    if row.unit == "messages":
        return f"{rate / 1e6:.2f} M/s"
    if row.unit == "bytes":
        return f"{rate / 1e9:.2f} GB/s"
    return f"{1e6 / rate:.0f} µs"


def format_times(row: RowResult) -> str:
    """The speed-up and its interval."""
    if row.speedup is None:
        return "–"
    if row.low is None or row.high is None:
        return f"{row.speedup:.2g} ×"
    return f"{row.speedup:.2f} × ({row.low:.2f}–{row.high:.2f})"


def format_limit(limit: Limit) -> str:
    """A limit's median and its unit."""
    value = limit.median
    return f"{value:.0f} {limit.unit}" if value >= 100 else f"{value:.3g} {limit.unit}"


def findings(result: BenchResult) -> list[str]:
    """What the limits say about this machine, a sentence each."""
    limits = {limit.name: limit.median for limit in result.limits}
    said = []
    warm = limits.get("copy, warm memory")
    fresh = limits.get("copy, fresh memory, 4 KiB pages")
    huge = limits.get("copy, fresh memory, huge pages")
    loopback = limits.get("tcp loopback, 1 MiB writes")
    if warm and fresh:
        times = warm / fresh
        if times >= DEAR_FAULTS:
            said.append(
                f"Page faults limit it: a copy into fresh memory takes {times:.1f} times as long "
                "as into memory that is there. zfast keeps memory and mappings."
            )
        else:
            said.append("Memory bandwidth limits it, page faults cost little.")
    if fresh and huge and huge >= DEAR_FAULTS * fresh:
        said.append(f"Huge pages help: {huge / fresh:.1f} times as fast as small ones when fresh.")
    if warm and loopback:
        said.append(
            f"tcp on loopback carries {loopback:.1f} GB/s, {loopback / warm:.2f} of a warm copy: "
            "between processes of one host shared memory is worth it."
        )
    return said
