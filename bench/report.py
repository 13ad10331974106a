"""What one run says: its groups as tables, on a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.rows import (
    Group,
    Row,
    Run,
    format_count,
    format_rate,
    format_ratio,
    format_seconds,
    machine_line,
    spread,
)
from bench.targets import COLUMNS as TARGET_COLUMNS
from bench.targets import TITLE as TARGETS_TITLE
from bench.targets import check_targets, print_targets

HOW_TO_READ = (
    "Peers take turns, one round each in a pass. Times are medians of the rounds. The ratio is the "
    "reference's time over the row's in the same pass: its median and its quartiles. "
    "★ is the fastest; a row in brackets is a limit of the machine, not a peer."
)
SMOKE = "A smoke run: one short round each. Its timings say nothing."


@dataclass
class Column:
    """A column of a group's table. `cell` gives None where a row has nothing to show."""

    title: str
    cell: Callable[[Group, Row], str | None]
    optional: bool = False


def _ratio(group: Group, row: Row) -> str:
    return "reference" if row.peer == group.reference else format_ratio(group.speedup(row))


def _quartiles(group: Group, row: Row) -> str | None:
    quartiles = group.speedup_spread(row)
    if row.peer == group.reference or quartiles is None:
        return None
    return "–".join(format_ratio(ratio).removesuffix(" ×") for ratio in quartiles)


def _beyond(_: Group, row: Row) -> str | None:
    if row.beyond_base is None:
        return None
    low, high = spread(row.beyond_base)
    middle = format_seconds(median(row.beyond_base))
    return middle if low == high else f"{middle} ({format_seconds(low)}, {format_seconds(high)})"


COLUMNS = [
    Column("median", lambda _, row: format_seconds(row.median)),
    Column("rate", lambda _, row: format_rate(row)),
    Column("ratio", _ratio),
    Column("quartiles", _quartiles, optional=True),
    Column("beyond 800 B", _beyond, optional=True),
    Column(
        "other process",
        lambda _, row: None if row.elsewhere is None else f"{row.elsewhere:.0%}",
        optional=True,
    ),
    Column(
        "arrived",
        lambda _, row: None if row.arrived is None else f"{row.arrived:.0%}",
        optional=True,
    ),
    Column(
        "peak memory",
        lambda _, row: (
            None if row.peak_memory_ratio is None else f"{row.peak_memory_ratio:.2f} × payload"
        ),
        optional=True,
    ),
    Column(
        "page faults",
        lambda _, row: None if row.minor_faults is None else format_count(row.minor_faults),
        optional=True,
    ),
    Column("rounds", lambda _, row: str(len(row.durations))),
]


def columns_of(group: Group) -> list[Column]:
    """The columns that any of its rows fills."""
    return [
        column
        for column in COLUMNS
        if not column.optional or any(column.cell(group, row) for row in group.rows)
    ]


def row_label(group: Group, row: Row) -> str:
    """The peer, and a star if it is the fastest of several; limits in brackets."""
    if row.limit:
        return f"[{row.peer}]"
    peers = [peer for peer in group.rows if not peer.limit]
    fastest = min(peers, key=lambda peer: peer.median / peer.work)
    return f"{row.peer} ★" if row is fastest and len(peers) > 1 else row.peer


def print_report(run: Run, console: Console) -> None:
    """Print a table for each group, and what the numbers depend on."""
    if run.smoke:
        console.print(SMOKE, style="bold yellow")
    for group in run.groups:
        console.print(_table(group))
    print_targets(run, console)
    console.print(machine_line(run.machine), style="dim", highlight=False)
    console.print(Text(HOW_TO_READ), style="dim")


def markdown_report(run: Run) -> str:
    """The same in Markdown."""
    parts = [f"**{SMOKE}**"] if run.smoke else []
    for group in run.groups:
        columns = columns_of(group)
        lines = [
            f"**{group.name}**",
            "",
            _markdown_line(["peer", *(column.title for column in columns)]),
            _markdown_line(["---", *("---:" for _ in columns)]),
        ]
        for row in group.rows:
            cells = [column.cell(group, row) or "–" for column in columns]
            lines.append(_markdown_line([row_label(group, row), *cells]))
        for peer, reason in group.lost.items():
            cells = [f"lost: {reason.splitlines()[0]}", *("" for _ in columns[1:])]
            lines.append(_markdown_line([peer, *cells]))
        parts.append("\n".join(lines))
    targets = check_targets(run)
    if targets:
        lines = [_markdown_line(TARGET_COLUMNS), _markdown_line(["---"] * len(TARGET_COLUMNS))]
        lines += map(_markdown_line, targets)
        parts.append("\n".join([f"**{TARGETS_TITLE}**", "", *lines]))
    return "\n\n".join([*parts, machine_line(run.machine), HOW_TO_READ])


def _markdown_line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _table(group: Group) -> Table:
    table = Table(title=group.name, title_justify="left", title_style="bold")
    table.add_column("peer", no_wrap=True)
    columns = columns_of(group)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in group.rows:
        label = row_label(group, row)
        cells = [column.cell(group, row) or "–" for column in columns]
        style = "dim" if row.limit else "bold" if label != row.peer else None
        # Text: brackets are not markup.
        table.add_row(Text(label), *cells, style=style)
    reasons: list[str] = []
    for peer, reason in group.lost.items():
        table.add_row(peer, "lost", style="red")
        reasons.append(f"{peer}: {reason.splitlines()[0]}")
    # Text: what a peer said is not markup.
    table.caption = Text("; ".join(reasons)) if reasons else None
    return table
