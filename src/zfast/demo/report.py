"""A comparison as a table on the terminal and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from zfast import __version__
from zfast.demo.comparison import RUNNER_NAMES, Comparison

_MIN_WIDTH = 100
_ANSWER_ROWS = 8
_NOTES = """\
Each runner ran once, in a process of its own, after one run that was not measured.
first task: from calling the flow until the first task's own code began; workers start in it.
tasks' code: what the tasks' functions alone take on {max_workers} workers, replayed from their
  times in this run: each starts when a worker is free and its inputs exist.
lost: the rest of the wall clock: hashing inputs, encoding, copying, waiting, stopping workers.
handed over: size of all DataFrames that tasks were given by other tasks.
peak memory: {memory_kind} of the flow's process and its children, sampled every 50 ms."""


def print_report(comparison: Comparison, picture: Path) -> None:
    """Print the figures, how they were taken, and the answer, to standard output."""
    console = Console(highlight=False, markup=False)
    if console.width < _MIN_WIDTH and not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_MIN_WIDTH)
    console.print(_figures(comparison))
    notes = _NOTES.format(
        max_workers=comparison.max_workers, memory_kind=comparison.runs[0].memory_kind
    )
    console.print(notes, style="dim", soft_wrap=True)
    console.print()
    for name, rows in comparison.answer.items():
        if isinstance(rows, list):
            console.print(_records(name, rows))
    if len(comparison.runs) > 1:
        console.print("All runners gave this same answer.")
    console.print(f"picture: {picture}", soft_wrap=True)


def as_json(comparison: Comparison, picture: Path) -> str:
    """The figures as one JSON object; seconds and bytes as the names say."""
    report = {
        "zfast_version": __version__,
        **asdict(comparison),
        # A run with another answer ends the demo: see ``compare``.
        "answers_equal": True,
        "picture": str(picture),
    }
    return json.dumps(report, indent=2, allow_nan=False)


def _figures(comparison: Comparison) -> Table:
    table = Table(title=comparison.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task runner", no_wrap=True)
    for heading in (
        "wall clock, s",
        "first task, s",
        "tasks' code, s",
        "lost, s",
        "handed over, GB",
        "peak memory, GB",
    ):
        table.add_column(heading, justify="right")
    for run in comparison.runs:
        seconds = (run.wall_s, run.first_task_s, run.bodies_s, run.lost_s)
        nbytes = (run.handed_nbytes, run.peak_memory_nbytes)
        table.add_row(
            RUNNER_NAMES[run.runner],
            *(f"{value:.2f}" for value in seconds),
            *(f"{value / 1e9:.3g}" for value in nbytes),
        )
    return table


def _records(name: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
    for column in rows[0] if rows else ():
        numeric = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows[:_ANSWER_ROWS]:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return "" if value is None else str(value)
