"""Baselines, and what changed between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.rows import (
    Group,
    Row,
    Run,
    describe_machine,
    format_ratio,
    format_seconds,
    machine_line,
    spread,
)

SIGNIFICANT_DIGITS = 5
MIN_ROUNDS = 4


def save_baseline(source: Path, target: Path) -> None:
    """Trim a run's JSON to what a later comparison needs: no names of hosts, people or paths."""
    content = json.loads(source.read_text())
    machine = describe_machine(content["machine_info"])
    system, _, architecture = machine.pop("system").partition(" ")
    trimmed: dict[str, Any] = {
        "machine_info": {
            "cpu_model": machine["cpu"],
            "cores": machine["cores"],
            "memory_gib": machine["memory_gib"],
            "system": system,
            "machine": architecture,
            "python_version": machine["python"],
            "versions": machine["versions"],
        },
        "datetime": content["datetime"],
        "smoke": content["smoke"],
        "lost": [{**lost, "reason": "lost in this run"} for lost in content.get("lost", [])],
        "benchmarks": [
            {
                "group": benchmark["group"],
                "extra_info": benchmark["extra_info"],
                "stats": {
                    "data": [
                        float(f"{duration:.{SIGNIFICANT_DIGITS}g}")
                        for duration in benchmark["stats"]["data"]
                    ]
                },
            }
            for benchmark in content["benchmarks"]
        ],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(trimmed, separators=(",", ":")) + "\n")


def verdict(before: list[float], now: list[float]) -> str:
    """Judge two runs' speedups: a change is one only if their middle halves lie apart."""
    if len(before) < MIN_ROUNDS or len(now) < MIN_ROUNDS:
        return "too few rounds"
    before_low, before_high = spread(before)
    now_low, now_high = spread(now)
    if now_low > before_high:
        return "faster"
    if now_high < before_low:
        return "slower"
    return "within noise"


def print_comparison(before: Run, now: Run, console: Console) -> None:
    """Print each row's change, in time and against the reference peer of its own run."""
    if before.smoke or now.smoke:
        console.print("[bold yellow]A smoke run is among them: its timings say nothing.")
    if before.machine != now.machine:
        console.print("[yellow]Machines or versions differ: believe the ratios, not the times.")
        console.print(f"before: {machine_line(before.machine)}", highlight=False)
        console.print(f"now:    {machine_line(now.machine)}", highlight=False)
    table = Table()
    for title in ("group", "peer"):
        table.add_column(title, no_wrap=True)
    for title in ("before", "now", "before ÷ now", "ratio before", "ratio now", "verdict"):
        table.add_column(title, justify="right", no_wrap=True)
    groups_before = {group.name: group for group in before.groups}
    groups_now = {group.name: group for group in now.groups}
    for name in {**groups_before, **groups_now}:
        table.add_section()
        _add_rows(table, groups_before.get(name, Group(name)), groups_now.get(name, Group(name)))
    console.print(table)


def _add_rows(table: Table, before: Group, now: Group) -> None:
    rows_before = {row.peer: row for row in before.rows}
    rows_now = {row.peer: row for row in now.rows}
    for peer in {**rows_before, **rows_now}:
        old, new = rows_before.get(peer), rows_now.get(peer)
        ratio_old, ratio_new = (_ratio(group, row) for group, row in ((before, old), (now, new)))
        if old is None or new is None:
            times = [format_seconds(row.median) if row else "–" for row in (old, new)]
            said = "new" if old is None else "lost" if peer in now.lost else "not run"
            table.add_row(now.name, peer, *times, "–", ratio_old, ratio_new, said)
            continue
        said = verdict(before.speedups(old), now.speedups(new))
        if old.work != new.work:
            said = "not the same work"
        elif peer == now.reference:
            # Its time shows how the machine differed; by definition its ratio does not.
            said = "reference"
        table.add_row(
            now.name,
            peer,
            format_seconds(old.median),
            format_seconds(new.median),
            format_ratio(old.median / new.median) if old.work == new.work else "–",
            ratio_old,
            ratio_new,
            said,
            style={"faster": "green", "slower": "red"}.get(said),
        )


def _ratio(group: Group, row: Row | None) -> str:
    speedup = group.speedup(row) if row else None
    return format_ratio(speedup)
