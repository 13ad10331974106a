"""The machine's limits as a table, and as a file beside a run's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.rows import spread
from zfast.benchmark.limits import Limit

SUFFIX = ".limits.json"
TITLE = "limits of this machine"


def limits_path(run: Path) -> Path:
    """Where the limits that were measured with a run are."""
    return run.with_suffix(SUFFIX)


def save_limits(limits: list[Limit], path: Path) -> None:
    """Write them."""
    path.write_text(json.dumps({"limits": [asdict(limit) for limit in limits]}, indent=1) + "\n")


def load_limits(run: Path) -> list[Limit]:
    """Read what was measured with a run; nothing if nothing was."""
    path = limits_path(run)
    if not path.exists():
        return []
    return [Limit(**limit) for limit in json.loads(path.read_text())["limits"]]


def print_limits(limits: list[Limit], console: Console) -> None:
    """Print them, if there are any."""
    if not limits:
        return
    table = Table(title=TITLE, title_justify="left", title_style="bold")
    table.add_column("what", no_wrap=True)
    for title in ("median", "quartiles", "÷ warm copy"):
        table.add_column(title, justify="right", no_wrap=True)
    for limit in limits:
        table.add_row(limit.name, *_cells(limit, limits))
    console.print(table)


def markdown_limits(limits: list[Limit]) -> str:
    """The same in Markdown."""
    if not limits:
        return f"**{TITLE}**: not measured"
    lines = [
        f"**{TITLE}**",
        "",
        "| what | median | quartiles | ÷ warm copy |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [f"| {limit.name} | {' | '.join(_cells(limit, limits))} |" for limit in limits]
    return "\n".join(lines)


def _cells(limit: Limit, limits: list[Limit]) -> list[str]:
    low, high = spread(limit.values)
    share = f"{limit.median / limits[0].median:.2f}" if limit.unit == limits[0].unit else "–"
    return [f"{_digits(limit.median)} {limit.unit}", f"{_digits(low)}–{_digits(high)}", share]


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
