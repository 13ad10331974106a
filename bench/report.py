"""The table of ratios of one run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.rows import Group, Row, Run, format_rate, format_ratio, format_seconds, machine_line


def print_report(run: Run, console: Console) -> None:
    """Print a table for each group, and what the numbers depend on."""
    if run.smoke:
        console.print("[bold yellow]A smoke run: one short round each. Its timings say nothing.")
    for group in run.groups:
        console.print(_table(group))
    console.print(machine_line(run.machine), style="dim", highlight=False)
    console.print(
        "Peers take turns, one round each in a pass. Times are medians of the rounds. The ratio is "
        "the reference's time over the row's in the same pass: its median and its quartiles.",
        style="dim",
    )


def _table(group: Group) -> Table:
    table = Table(title=group.name, title_justify="left", title_style="bold")
    table.add_column("peer", no_wrap=True)
    for title in ("median", "rate", "ratio", "quartiles", "rounds"):
        table.add_column(title, justify="right", no_wrap=True)
    with_memory = any(row.peak_memory_ratio is not None for row in group.rows)
    if with_memory:
        table.add_column("peak memory", justify="right", no_wrap=True)
    winner = min(group.rows, key=lambda row: row.median / row.work, default=None)
    for row in group.rows:
        cells = _cells(group, row)
        if with_memory:
            peak = row.peak_memory_ratio
            cells.append("–" if peak is None else f"{peak:.2f} × payload")
        won = row is winner and len(group.rows) > 1
        table.add_row(f"{row.peer} ★" if won else row.peer, *cells, style="bold" if won else None)
    reasons: list[str] = []
    for peer, reason in group.lost.items():
        table.add_row(peer, "lost", style="red")
        reasons.append(f"{peer}: {reason.splitlines()[0]}")
    # Text: what a peer said is not markup.
    table.caption = Text("; ".join(reasons)) if reasons else None
    return table


def _cells(group: Group, row: Row) -> list[str]:
    speedup, spread = group.speedup(row), group.speedup_spread(row)
    if row.peer == group.reference:
        ratio, quartiles = "1 (reference)", ""
    else:
        ratio = format_ratio(speedup)
        quartiles = f"{spread[0]:.2f}–{spread[1]:.2f}" if spread else "–"
    return [
        format_seconds(row.median),
        format_rate(row),
        ratio,
        quartiles,
        str(len(row.durations)),
    ]
