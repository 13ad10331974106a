"""A comparison as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zfast.demo.comparison import RUNNER_NAMES, Comparison
from zfast.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAME = "runners.png"
_COLORS = {"first task": "#b8c4cc", "tasks' code": "#4c9f70", "lost": "#d1495b"}
_MEMORY_COLOR = "#30638e"
_ANSWER_COLOR = "#edae49"


def draw(comparison: Comparison, folder: Path) -> Path:
    """Draw time and memory of each runner, and the answer where it names delays.

    Args:
        comparison: The figures.
        folder: Gets ``runners.png``; made if need be.

    Raises:
        ConfigError: The file cannot be written.
    """
    # Not pyplot: it looks for a display and keeps every figure.
    from matplotlib.figure import Figure

    carriers = comparison.answer.get("carriers")
    figure = Figure(figsize=(10, 7 if carriers else 3.8), layout="constrained")
    figure.suptitle(f"{comparison.title}, {comparison.max_workers} workers")
    axes = figure.subplot_mosaic("TM;CC" if carriers else "TM", width_ratios=[3, 2])
    _draw_times(axes["T"], comparison)
    _draw_memory(axes["M"], comparison)
    if carriers:
        _draw_carriers(axes["C"], carriers)
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", hint="give another folder with --output"
        ) from error
    return path


def _names(comparison: Comparison) -> list[str]:
    return [RUNNER_NAMES[run.runner] for run in comparison.runs]


def _draw_times(axes: Axes, comparison: Comparison) -> None:
    names = _names(comparison)
    left = [0.0] * len(names)
    parts = {
        "first task": [run.first_task_s for run in comparison.runs],
        "tasks' code": [run.bodies_s for run in comparison.runs],
        "lost": [run.lost_s for run in comparison.runs],
    }
    for part, seconds in parts.items():
        axes.barh(names, seconds, left=left, label=part, color=_COLORS[part])
        left = [start + length for start, length in zip(left, seconds, strict=True)]
    for name, run in zip(names, comparison.runs, strict=True):
        axes.annotate(
            f" {run.wall_s:.1f} s, {run.handed_nbytes / 1e9:.2f} GB handed over",
            (run.wall_s, name),
            va="center",
        )
    axes.set(xlabel="wall clock, s", xlim=(0, 1.9 * max(run.wall_s for run in comparison.runs)))
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize="small")


def _draw_memory(axes: Axes, comparison: Comparison) -> None:
    peaks_gb = [run.peak_memory_nbytes / 1e9 for run in comparison.runs]
    bars = axes.barh(_names(comparison), peaks_gb, color=_MEMORY_COLOR)
    axes.bar_label(bars, fmt=" %.2f GB")
    axes.invert_yaxis()
    axes.set(
        xlabel=f"peak memory ({comparison.runs[0].memory_kind}), GB",
        xlim=(0, 1.4 * max(peaks_gb)),
        # The same bars as beside it.
        yticklabels=[],
    )


def _draw_carriers(axes: Axes, carriers: list[dict[str, Any]]) -> None:
    bars = axes.barh(
        [row["name"] for row in carriers],
        [row["mean_delay_min"] for row in carriers],
        color=_ANSWER_COLOR,
    )
    axes.bar_label(bars, fmt=" %.1f")
    axes.invert_yaxis()
    axes.set(title="the answer", xlabel="mean delay on arrival, minutes")
