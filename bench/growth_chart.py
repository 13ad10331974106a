"""The chart of how each transport's time grows with the size of what it carries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.chart import REFERENCE, ZFAST, caption
from bench.rows import Row, Run, format_seconds, format_size, spread

CHART = "transports"
COLOURS = ["#1971c2", "#2f9e44", "#9c36b5", "#0c8599", "#846358", "#e599f7", "#74b816", "#f08c00"]
#: The least distance of two labels, as a share of the axis.
LABEL_DISTANCE = 0.047


def draw_growth(run: Run, path: Path) -> bool:
    """Draw time and throughput over size, a line for each peer; False if there is nothing."""
    lines: dict[str, list[Row]] = {}
    for group in run.groups:
        for row in group.rows:
            if row.chart == CHART and row.payload_nbytes:
                lines.setdefault(row.peer, []).append(row)
    lines = {
        peer: sorted(rows, key=lambda row: row.payload_nbytes or 0)
        for peer, rows in lines.items()
        if len(rows) > 1
    }
    if not lines:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(15.5, 6.6), layout="constrained")
    _draw(left, lines, lambda _, seconds: seconds)
    _draw(right, lines, lambda row, seconds: row.work / seconds)
    left.set_title("Time of a transfer, acknowledged", loc="left", fontsize=11, fontweight="bold")
    left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_seconds(y)))
    right.set_title("Throughput", loc="left", fontsize=11, fontweight="bold")
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{format_size(y)}/s"))
    caption(
        figure,
        run,
        "A DataFrame to another process of the host, every page read",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _draw(axis: Axes, lines: dict[str, list[Row]], value: Callable[[Row, float], float]) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    colours = iter(COLOURS)
    ends: list[tuple[float, str, str]] = []
    for peer, rows in lines.items():
        zfast, limit = peer.startswith("zfast"), rows[0].limit
        colour = ZFAST if zfast else REFERENCE if limit else next(colours, "#868e96")
        sizes = [float(row.payload_nbytes or 0) for row in rows]
        middles = [value(row, row.median) for row in rows]
        low, high = zip(
            *([value(row, seconds) for seconds in spread(row.durations)] for row in rows),
            strict=True,
        )
        axis.plot(
            sizes,
            middles,
            color=colour,
            linewidth=2.8 if zfast else 1.5,
            linestyle="--" if limit else "-",
            marker="o",
            markersize=5.5 if zfast else 3.5,
            zorder=3 if zfast else 2,
        )
        axis.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
        ends.append((middles[-1], f"{peer} (limit)" if limit else peer, colour))
    all_sizes = sorted({float(row.payload_nbytes or 0) for rows in lines.values() for row in rows})
    axis.set_xticks(all_sizes, [format_size(size) for size in all_sizes], fontsize=9)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(numticks=12))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", labelsize=9)
    axis.grid(which="major", color="#dee2e6", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    _label(axis, ends)


def _label(axis: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name each line at its end; names keep their order and a distance."""
    to_axis = axis.transAxes.inverted()
    last = axis.dataLim.x1
    places = sorted(
        (float(to_axis.transform(axis.transData.transform((last, y)))[1]), name, colour)
        for y, name, colour in ends
    )
    heights: list[float] = []
    for height, _, _ in places:
        heights.append(max(height, heights[-1] + LABEL_DISTANCE) if heights else height)
    # What was pushed out at the top comes down again.
    top = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = top = min(heights[i], top)
        top -= LABEL_DISTANCE
    for (_, name, colour), height in zip(places, heights, strict=True):
        axis.annotate(
            name,
            (1.015, height),
            xycoords="axes fraction",
            color=colour,
            fontsize=9.5,
            va="center",
            fontweight="bold" if name.startswith("zfast") else None,
            annotation_clip=False,
        )
