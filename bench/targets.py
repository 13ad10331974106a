"""What zfast promises, each promise checked against the rows of one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.rows import Group, Row, Run, format_ratio, format_seconds
from zfast.benchmark.statistics import Verdict, judge, paired_ratios

TITLE = "targets"
STYLES = {"met": "green", "missed": "red", "not measured": "yellow"}
COLUMNS = ["what", "target", "measured", ""]


@dataclass
class Target:
    """A row is to be so many times as fast as another, or to cost at most so much beyond 800 B.

    Attributes:
        group: The group that both rows are in.
        peer: The row in question.
        against: The row that it is compared with; None for an absolute bound.
        at_least: The least ratio, of medians over the passes.
        at_most_s: The most seconds beyond the same chain with 800 B.
        beyond: Compare what the payload costs beyond 800 B, not the whole.
        not_slower: Whatever the ratio, the other must not be faster beyond doubt.
    """

    group: str
    peer: str
    against: str | None = None
    at_least: float = 0.0
    at_most_s: float = 0.0
    beyond: bool = False
    not_slower: bool = False

    @property
    def wanted(self) -> str:
        """The target in words."""
        if self.not_slower:
            return f"not slower than {self.against}"
        if self.against is None:
            return f"≤ {format_seconds(self.at_most_s)} beyond 800 B"
        return f"≥ {self.at_least:g} × {self.against}"


def _all_targets() -> Iterator[Target]:
    for transport in ("tcp", "ipc"):
        yield Target(f"small messages, 64 B, {transport}", "zfast-batch", "libzmq-c", 3)
        yield Target(f"small messages, 64 B, {transport}", "zfast-iter", "pyzmq", 4)
        yield Target(f"small messages, 1024 B, {transport}", "zfast-batch", "libzmq-c", 4)
    for transport in ("ipc", "tcp"):
        frames = f"DataFrame, 100 MB, {transport}"
        yield Target(frames, "zfast-channel", "pyzmq-multipart", 2.5)
        yield Target(f"{frames}, last 8 kept", "zfast-channel", "pyzmq-multipart", 1.5)
    yield Target("DataFrame, 100 MB, tcp with CURVE", "zfast-channel", "pyzmq-multipart", 1.4)
    for size in ("1 MB", "100 MB", "1 GB"):
        yield Target(f"hand-over, {size}, consumer starts", "zfast", at_most_s=0.002)
    for memory in ("np.zeros", "made in a thread", "Arrow strings"):
        # At 1 GB one kind stands for all.
        for size in ("100 MB", "1 GB") if memory == "made in a thread" else ("100 MB",):
            group = f"hand-over, {size}, consumer starts"
            yield Target(group, f"zfast, {memory}", "memcpy, warm", 0.8, beyond=True)
    for runner in ("Dask", "Ray"):
        yield Target("hand-over, 1 GB, consumer has read all", "zfast", runner, 3)
    for policy in ("plain @task", "NO_CACHE"):
        yield Target(f"4 × 50 MB and a reduce, {policy}", "zfast", "ThreadPool", 2)
    yield Target("pandas work, 100 MB", "zfast task", "plain process", 1)
    for half, size, ratio in (
        *(("write", "1 KB", 1), ("write", "1 MB", 5), ("write", "100 MB", 15)),
        *(("read", "1 KB", 1), ("read", "1 MB", 20), ("read", "100 MB", 100)),
        ("exists", "100 MB", 100),
    ):
        yield Target(f"result store, {half} {size}", "zfast", "stock", ratio)
    for block in ("folder", "remote"):
        for half in ("write", "read"):
            group = f"result store, other block ({block}), {half} 100 MB"
            yield Target(group, "zfast/inline", "stock", 3)
            yield Target(group, "zfast/inline, key_storage", "stock, key_storage", 3)
    for noop in ("no-op task, 2 workers", "no-op task until its states are sent, 2 workers"):
        yield Target(noop, "zfast", "ThreadPool", 1.25)
        for runner in ("ProcessPool", "Dask", "Ray"):
            yield Target(noop, "zfast", runner, 20)
    stuck = "no-op task, 10 subscribers that never read"
    yield Target(stuck, "broadcast", "not broadcast", not_slower=True)


TARGETS = list(_all_targets())


def check_targets(run: Run) -> list[list[str]]:
    """Say of each target whose group was measured what was wanted, what came of it, whether met."""
    groups = {group.name: group for group in run.groups}
    lines = []
    for target in TARGETS:
        group = groups.get(target.group, Group(target.group))
        rows = {row.peer: row for row in group.rows}
        row = rows.get(target.peer)
        other = rows.get(target.against or target.peer)
        if row and other:
            measured, met = _check(target, row, other)
            verdict = "met" if met else "missed"
        elif group.rows or group.lost:
            measured, verdict = "a row was lost", "not measured"
        else:
            continue
        lines.append([f"{target.group}: {target.peer}", target.wanted, measured, verdict])
    return lines


def print_targets(run: Run, console: Console) -> None:
    """Print them, if the run has rows for any."""
    lines = check_targets(run)
    if not lines:
        return
    table = Table(title=TITLE, title_justify="left", title_style="bold")
    for title in COLUMNS:
        table.add_column(title)
    for line in lines:
        table.add_row(*line, style=STYLES[line[-1]])
    console.print(table)


def _check(target: Target, row: Row, other: Row) -> tuple[str, bool]:
    if target.against is None:
        beyond = median(row.beyond_base or row.durations)
        return format_seconds(beyond), beyond <= target.at_most_s
    if target.not_slower:
        judged = judge(paired_ratios(other.durations, row.durations), margin=0)
        measured = f"takes {judged.ratio:.3f} × ({judged.low:.3f}–{judged.high:.3f}, 99 %)"
        return measured, judged.verdict is not Verdict.SLOWER
    if not target.beyond:
        # Pass by pass, as all ratios are.
        pairs = zip(other.durations, row.durations, strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        return format_ratio(ratio), ratio >= target.at_least
    # Noise may make a difference zero or negative: the ratio of medians, not the median of ratios.
    beyond = median(row.beyond_base or row.durations)
    if beyond <= 0:
        return "no cost seen", True
    ratio = other.median / beyond
    return format_ratio(ratio), ratio >= target.at_least
