"""The chart of the hand-over between tasks: with a payload, and with hardly one."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.chart import OTHER, REFERENCE, ZFAST, caption
from bench.rows import Group, Row, Run, format_seconds, spread

CHART = "hand-over"


def draw_handover(run: Run, path: Path) -> bool:
    """Draw a panel for each size and each end of the hand-over; False if there is nothing."""
    groups = [group for group in run.groups if any(row.chart == CHART for row in group.rows)]
    if not groups:
        return False
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    most = max(len(group.rows) + len(group.lost) for group in groups)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(7.6 * columns, (0.3 * most + 0.9) * lines + 1.1),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    axes = list(grid.flat)
    if len(groups) < len(axes):
        # The smallest size has no "has read all": the place beside it stays empty.
        axes.pop(1).set_axis_off()
    for axis, group in zip(axes, groups, strict=True):
        _draw(axis, group)
    caption(
        figure,
        run,
        "From one task's end to the one that reads its frame (grey: 800 B; in brackets: beyond)",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _draw(axis: Axes, group: Group) -> None:
    for y, row in enumerate(group.rows):
        _draw_row(axis, y, row)
    labels = [f"{row.peer} (limit)" if row.limit else row.peer for row in group.rows]
    for peer in group.lost:
        axis.annotate(
            "lost",
            (0.02, len(labels)),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color="firebrick",
        )
        labels.append(peer)
    axis.set_yticks(range(len(labels)), labels, fontsize=9)
    for label in axis.get_yticklabels():
        if label.get_text().startswith("zfast"):
            label.set_color(ZFAST)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_seconds(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=9, labelbottom=True)
    axis.margins(x=0.16)
    axis.grid(axis="x", color="#e9ecef", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title(group.name, fontsize=10.5, loc="left", fontweight="bold")


def _draw_row(axis: Axes, y: int, row: Row) -> None:
    colour = ZFAST if row.peer.startswith("zfast") else REFERENCE if row.limit else "#4c6ef5"
    text = format_seconds(row.median)
    if row.base is not None and row.beyond_base is not None:
        base = median(row.base)
        axis.plot((base, row.median), (y, y), color=colour, linewidth=2.2, alpha=0.45, zorder=1)
        axis.plot(base, y, marker="o", markersize=5, color=OTHER, zorder=2)
        beyond = median(row.beyond_base)
        text += f"  ({'+' if beyond >= 0 else ''}{format_seconds(beyond)})"
    axis.plot(spread(row.durations), (y, y), color="black", linewidth=1, zorder=3)
    marker = "|" if row.limit else "o"
    axis.plot(
        row.median, y, marker=marker, markersize=11 if row.limit else 8, color=colour, zorder=4
    )
    axis.annotate(
        text,
        (max(row.median, median(row.base or [0.0])), y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
    )
