"""``zfast bench``: what limits this machine, and how much faster zfast is on it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from zfast.benchmark.limits import measure_limits
from zfast.benchmark.measure import BenchResult, new_result, run_row
from zfast.benchmark.page import render
from zfast.benchmark.rows import core_rows
from zfast.benchmark.words import findings, format_limit, format_rate, format_times
from zfast.cli.output_folder import make_folder
from zfast.cli.path_options import GivenPath
from zfast.cli.progress import StepProgress
from zfast.errors import ConfigError


def bench(
    *,
    output: Annotated[GivenPath, Parameter(name=["--output", "-o"])] = Path("zfast-bench"),
    rows: Annotated[list[str] | None, Parameter(negative="")] = None,
    small: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> int:
    """Measure this machine's limits and the core rows, in less than two minutes.

    Each row is a ratio: zfast and what it is compared with take turns, so that what else the
    machine does meanwhile slows both. Writes RESULT.json and RESULT.html into a folder.

    Parameters
    ----------
    output
        The folder.
    rows
        Only rows whose name has this; give it several times for several.
    small
        Each code path with little to do, in seconds: the timings say nothing.
    json
        Print the result as JSON instead of tables.
    """
    chosen = [row for row in core_rows(small) if not rows or any(r in row.name for r in rows)]
    if not chosen:
        raise ConfigError(
            f"no row has {', '.join(map(repr, rows or []))} in its name",
            hint="the rows: " + "; ".join(row.name for row in core_rows()),
        )
    make_folder(output)
    with StepProgress() as progress:
        progress.step("limits of this machine")
        result = new_result(measure_limits(small), small)
        for row in chosen:
            progress.step(row.name)
            result.rows.append(
                run_row(row, lambda done, wanted: progress.update(f"round {done} of {wanted}"))
            )
    stem = output / f"{datetime.now():%Y%m%d-%H%M%S}"
    encoded = msgspec.json.format(msgspec.json.encode(result), indent=1)
    stem.with_suffix(".json").write_bytes(encoded + b"\n")
    stem.with_suffix(".html").write_text(render(result), encoding="utf-8")
    if json:
        print(encoded.decode())
    else:
        _print(result, stem)
    return int(any(row.lost for row in result.rows))


def _print(result: BenchResult, stem: Path) -> None:
    console = Console(highlight=False, markup=False)
    if result.small:
        console.print("A small run: its timings say nothing.", style="bold yellow")
    limits = Table(title="limits of this machine", title_justify="left")
    limits.add_column("what")
    limits.add_column("median", justify="right")
    for limit in result.limits:
        limits.add_row(limit.name, format_limit(limit))
    table = Table(title="zfast on it", title_justify="left")
    for title in ("what", "against"):
        table.add_column(title)
    for title in ("it", "zfast", "times as fast (95 %)"):
        table.add_column(title, justify="right")
    for row in result.rows:
        if row.lost:
            table.add_row(row.name, row.reference, "–", "–", f"lost: {row.lost}", style="red")
            continue
        figures = [format_rate(row, seconds) for seconds in (row.reference_s, row.zfast_s)]
        table.add_row(row.name, row.reference, *figures, format_times(row))
    console.print(limits, table)
    for finding in findings(result):
        console.print(finding)
    for suffix in (".json", ".html"):
        console.print(f"{stem}{suffix}", soft_wrap=True)
