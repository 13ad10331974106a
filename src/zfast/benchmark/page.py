"""A run as one HTML file: tables, and charts as SVG; nothing is loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from zfast.benchmark.measure import BenchResult, RowResult
from zfast.benchmark.words import format_limit, format_rate, format_times

WIDTH, ROW_HEIGHT, LABEL_WIDTH, VALUE_WIDTH = 820, 30, 250, 150

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #6b7280; --bar: #2f6fdf;
  --line: #d0d5dd; --paper: #ffffff; --worse: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --bar: #6ea0ff;
  --line: #3a4250; --paper: #14171c; --worse: #fb923c; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid var(--line); } td.n, th.n { text-align: right; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } .soft { color: var(--soft); }
"""


def render(result: BenchResult) -> str:
    """The whole page."""
    warning = "<p><b>A small run: its timings say nothing.</b></p>" if result.small else ""
    machine = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>zfast bench</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>zfast bench</h1>
<p class="soft">{escape(result.when)}<br>{escape(machine)}<br>{escape(versions)}</p>{warning}
<h2>How many times as fast</h2>
<p>Rounds of both sides were taken in turns; the bar is the median of their ratios, the line its
95 % interval. Ratios hold on this machine; times of different machines say little.</p>
{speedup_chart(result.rows)}
{_row_table(result.rows)}
<h2>What limits this machine</h2>
{_limit_table(result)}
<p class="soft">Made by <code>zfast bench</code>.</p></body></html>
"""


def speedup_chart(rows: Sequence[RowResult]) -> str:
    """Bars of the speed-ups on a logarithmic scale, 1 × marked."""
    known = [row for row in rows if row.speedup is not None]
    if not known:
        return "<p>No row could be measured.</p>"
    values = [value for row in known for value in (row.speedup, row.low, row.high) if value]
    left, right = min(0.5, *values), max(2.0, *values)
    plot = WIDTH - LABEL_WIDTH - VALUE_WIDTH

    def x(value: float) -> float:
        return LABEL_WIDTH + plot * math.log(value / left) / math.log(right / left)

    parts = []
    height = ROW_HEIGHT * len(known) + 20
    for i, row in enumerate(known):
        middle = ROW_HEIGHT * i + ROW_HEIGHT / 2 + 8
        speedup = row.speedup or 1.0
        start, end = sorted((x(1.0), x(speedup)))
        color = "var(--bar)" if speedup >= 1 else "var(--worse)"
        parts.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{middle + 4:.0f}" text-anchor="end">'
            f"{escape(row.name)}</text>"
            f'<rect x="{start:.1f}" y="{middle - 8:.0f}" width="{max(1.0, end - start):.1f}" '
            f'height="16" rx="2" fill="{color}"/>'
            f'<text x="{WIDTH - VALUE_WIDTH + 10}" y="{middle + 4:.0f}">{format_times(row)}</text>'
        )
        if row.low and row.high:
            parts.append(
                f'<line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{middle:.0f}" '
                f'y2="{middle:.0f}" stroke="var(--ink)" stroke-width="2"/>'
            )
    parts.append(
        f'<line x1="{x(1.0):.1f}" x2="{x(1.0):.1f}" y1="4" y2="{height - 4}" '
        f'stroke="var(--soft)" stroke-dasharray="3 3"/>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" '
        f'aria-label="Speed-ups of zfast">{"".join(parts)}</svg>'
    )


def _row_table(rows: Sequence[RowResult]) -> str:
    lines = [
        "<table><tr><th>what</th><th>against</th><th class=n>it</th><th class=n>zfast</th>"
        "<th class=n>times</th><th>limited by</th></tr>"
    ]
    for row in rows:
        figures = (
            [f"lost: {row.lost}", "–", "–"]
            if row.lost
            else [
                format_rate(row, row.reference_s),
                format_rate(row, row.zfast_s),
                format_times(row),
            ]
        )
        cells = "".join(f"<td class=n>{escape(figure)}</td>" for figure in figures)
        lines.append(
            f"<tr><td>{escape(row.name)}</td><td>{escape(row.reference)}</td>{cells}"
            f"<td class=soft>{escape(row.limited_by)}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _limit_table(result: BenchResult) -> str:
    lines = ["<table><tr><th>limit</th><th class=n>median</th></tr>"]
    lines += [
        f"<tr><td>{escape(limit.name)}</td><td class=n>{escape(format_limit(limit))}</td></tr>"
        for limit in result.limits
    ]
    return "\n".join([*lines, "</table>"])
