"""The chart of ratios of one run: for each group, how many times faster than the reference."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.rows import Group, Run, format_rate, format_ratio, machine_line

COLUMNS = 3
ZFAST, REFERENCE, OTHER = "#d9480f", "#495057", "#adb5bd"


def draw_ratios(run: Run, path: Path) -> bool:
    """Draw small multiples, one for each group without a chart of its own; False if none."""
    groups = [
        group
        for group in run.groups
        if group.reference_row and not any(row.chart for row in group.rows)
    ]
    if not groups:
        return False
    lines = math.ceil(len(groups) / COLUMNS)
    figure, grid = plt.subplots(
        lines,
        COLUMNS,
        figsize=(4.6 * COLUMNS, 2.1 * lines + 1.2),
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.flat)
    for axis, group in zip(axes, groups, strict=False):
        _draw_group(axis, group)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    caption(
        figure, run, "Times faster than the reference peer (logarithmic, whiskers are quartiles)"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def caption(figure: Figure, run: Run, title: str) -> None:
    """Say what a chart shows, and what its numbers depend on."""
    if run.smoke:
        title = "Smoke run, timings say nothing. " + title
    # In two lines where one would be wider than the chart.
    inches = figure.get_figwidth()
    title = "\n".join(textwrap.wrap(title, int(inches * 8)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    words = "\n".join(
        textwrap.wrap(machine_line(run.machine), int(inches * 18), break_on_hyphens=False)
    )
    figure.supxlabel(words, fontsize=8, color="gray")


def _draw_group(axis: Axes, group: Group) -> None:
    bars = [(row, group.speedup(row) or math.nan) for row in group.rows]
    for y, (row, speedup) in enumerate(bars):
        colour = OTHER
        if row.peer.startswith("zfast"):
            colour = ZFAST
        elif row.peer == group.reference:
            colour = REFERENCE
        # From the reference outwards: to the right is faster, to the left slower.
        axis.barh(y, speedup - 1, left=1, color=colour, height=0.7)
        spread = group.speedup_spread(row)
        if spread and row.peer != group.reference:
            axis.plot(spread, (y, y), color="black", linewidth=1)
        ends = max(speedup, 1.0, spread[1] if spread else 0)
        text = (
            format_rate(row)
            if row.peer == group.reference
            else (f"{format_ratio(speedup)} · {format_rate(row)}")
        )
        axis.annotate(
            text, (ends, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    labels = [row.peer for row, _ in bars]
    for peer in group.lost:
        axis.annotate(
            "lost",
            (1, len(labels)),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="firebrick",
        )
        labels.append(peer)
    speedups = [speedup for _, speedup in bars]
    # Room on the right for the text of the longest bar.
    spreads = [group.speedup_spread(row) or (1.0, 1.0) for row in group.rows]
    low = min(0.5, *speedups, *(first for first, _ in spreads)) * 0.8
    high = max(2.0, *speedups)
    axis.set_xscale("log")
    axis.set_xlim(low, high * (high / low) ** 0.75)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.axvline(1, color=REFERENCE, linewidth=0.8)
    axis.set_title(group.name, fontsize=9.5, loc="left", fontweight="bold")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 20 else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=7.5)
    axis.spines[["top", "right"]].set_visible(False)
