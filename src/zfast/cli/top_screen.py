"""What ``zfast top`` shows: a tally on a screen of so many columns and lines."""

from __future__ import annotations

import socket
import time
from dataclasses import asdict
from typing import Any

import msgspec
import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zfast.events.event import FINAL_TYPES
from zfast.events.tally import COLUMNS, FlowTally, Percentiles, Tally, WorkerTally

_STYLES = {
    "PENDING": "magenta",
    "RUNNING": "blue",
    "COMPLETED": "green",
    "FAILED": "red",
    "CRASHED": "bold red",
    "CANCELLED": "yellow",
}
#: Lines that are neither flows nor workers.
_FIXED_LINES = 9
_MIN_LINES = 3


def draw(
    tally: Tally, *, width: int, height: int, pattern: str = "", typing: bool = False
) -> RenderableType:
    """The whole screen.

    Args:
        tally: What to show.
        width: Columns; 80 are enough.
        height: Lines; 24 are enough.
        pattern: Only flows and workers whose name contains it.
        typing: The pattern is being typed.
    """
    workers = [item for item in tally.workers.items() if pattern in item[0] or not pattern]
    flows = [
        flow
        for flow in reversed(tally.flows.values())
        if pattern.casefold() in f"{flow.name} {flow.run_name}".casefold()
    ]
    flows.sort(key=lambda flow: flow.state_type in FINAL_TYPES)
    worker_lines = min(len(workers), max(_MIN_LINES, (height - _FIXED_LINES) // 3))
    flow_lines = max(_MIN_LINES, height - _FIXED_LINES - worker_lines)
    parts: list[RenderableType] = [
        _headline(tally),
        _flow_table(flows[:flow_lines], width),
        _worker_table(workers[-worker_lines:] if worker_lines else [], width),
    ]
    keys = f"/{pattern}▏" if typing else f"filter {pattern!r}  " if pattern else ""
    parts.append(Text(f"{keys}{'' if typing else '/ filter  Esc all  q quit'}", style="dim"))
    return Group(*parts)


def as_figures(tally: Tally) -> dict[str, Any]:
    """The same as plain values, for JSON."""
    return {
        "events": tally.events,
        "lost": tally.lost,
        "throughput_per_s": round(tally.throughput(), 1),
        "latency": asdict(tally.latency()),
        "task_durations": asdict(tally.durations()),
        "tasks": dict(tally.totals()),
        "handover": {
            "bytes_per_s": round(tally.handover_rate()),
            "shared_nbytes": tally.shared_nbytes,
            "copied_nbytes": tally.copied_nbytes,
        },
        "flows": {
            run_id: {
                "name": flow.name,
                "run_name": flow.run_name,
                "state": flow.state,
                "tasks": dict(+flow.tasks),
                "retries": flow.retries,
                "cached": flow.cached,
            }
            for run_id, flow in tally.flows.items()
        },
        "workers": {
            name: {
                "running": len(worker.running),
                "ended": worker.ended,
                "vitals": msgspec.structs.asdict(worker.vitals) if worker.vitals else None,
            }
            for name, worker in tally.workers.items()
        },
    }


def _headline(tally: Tally) -> Text:
    totals = tally.totals()
    text = Text()
    text.append("zfast top", style="bold")
    text.append(f"  {time.strftime('%H:%M:%S')}  ")
    text.append(f"{tally.throughput():.0f} transitions/s", style="bold")
    text.append(f"  {tally.events} events")
    if tally.lost:
        text.append(f"  {tally.lost} missing", style="bold yellow")
    text.append("\nlatency ms  ")
    text.append(_percentiles(tally.latency()))
    text.append("   task ms ")
    text.append(_percentiles(tally.durations()))
    text.append("\nhand-over   ")
    text.append(f"{tally.handover_rate() / 1e9:.2f} GB/s", style="bold")
    text.append(f"  {_nbytes(tally.shared_nbytes)} in place  {_nbytes(tally.copied_nbytes)} copied")
    queued = sum(each.vitals.queued for each in tally.workers.values() if each.vitals)
    if queued:
        text.append(f"    {queued} queued")
    text.append("\n")
    for column in COLUMNS:
        if totals[column]:
            text.append(f"{column.lower()} {totals[column]}  ", style=_STYLES[column])
    return text


def _flow_table(flows: list[FlowTally], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="bold")
    table.add_column("flow run", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("state", width=10, no_wrap=True)
    for title in ("pend", "run", "done", "fail", "retr", "cach"):
        table.add_column(title, justify="right", width=5)
    table.add_column("time", justify="right", width=7)
    for flow in flows:
        tasks = flow.tasks
        failed = tasks["FAILED"] + tasks["CRASHED"] + tasks["CANCELLED"]
        table.add_row(
            Text(f"{flow.name} {flow.run_name}"),
            Text(flow.state, style=_STYLES.get(flow.state_type, "")),
            _count(tasks["PENDING"], "magenta"),
            _count(tasks["RUNNING"], "blue"),
            _count(tasks["COMPLETED"], "green"),
            _count(failed, "red"),
            _count(flow.retries, "yellow"),
            _count(flow.cached, "cyan"),
            _age(flow),
        )
    return table


def _worker_table(workers: list[tuple[str, WorkerTally]], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="bold")
    table.add_column("process", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("state", width=8, no_wrap=True)
    for title, columns in (
        ("run", 4), ("ended", 6), ("memory", 9), ("arena", 9), ("lent", 9), ("leases", 6)
    ):  # fmt: skip
        table.add_column(title, justify="right", width=columns)
    for name, worker in workers:
        vitals = worker.vitals
        told = (
            (_nbytes(vitals.memory_nbytes), _nbytes(vitals.arena_nbytes),
             _nbytes(vitals.lent_nbytes), str(vitals.leases))
            if vitals is not None
            else (_memory(name), "–", "–", "–")
        )  # fmt: skip
        state = vitals.state_name.lower() if vitals is not None else ""
        table.add_row(Text(name), state, str(len(worker.running)), str(worker.ended), *told)
    return table


def _nbytes(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


def _count(number: int, style: str) -> Text:
    return Text(str(number) if number else "·", style=style if number else "dim")


def _percentiles(values: Percentiles) -> str:
    if values.p50_ms is None or values.p95_ms is None or values.p99_ms is None:
        return "p50 –  p95 –  p99 –"
    figures = [_four_columns(each) for each in (values.p50_ms, values.p95_ms, values.p99_ms)]
    return "p50 {}  p95 {}  p99 {}".format(*figures)


def _four_columns(milliseconds: float) -> str:
    """So many, or from 10 s on in a unit that is named."""
    for below_ms, unit, unit_ms, digits in (
        (9.995, "", 1, 2), (99.95, "", 1, 1), (9999.5, "", 1, 0),
        (999_500, "s", 1000, 0), (999.5 * 60_000, "m", 60_000, 0),
    ):  # fmt: skip
        if milliseconds < below_ms:
            return f"{milliseconds / unit_ms:.{digits}f}{unit}"
    return f"{milliseconds / 3_600_000:.0f}h"


def _age(flow: FlowTally) -> str:
    if not flow.started_ns:
        return "–"
    seconds = ((flow.ended_ns or time.time_ns()) - flow.started_ns) / 1e9
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _memory(worker: str) -> str:
    """Of a process of this host."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return "–"
    try:
        return f"{psutil.Process(int(pid)).memory_info().rss >> 20} MiB"
    except psutil.Error:
        return "ended"
