"""Two revisions of zfast, measured in turns on one machine: ``python -m bench revisions OLD NEW``.

Each is built into a folder of its own; a round of a row is one run of `bench.revision_rounds` in
each, old and new taking turns, so a pair of rounds sees the same machine. What may be concluded
from the pairs is `zfast.benchmark.statistics`'s: a row fails only if even the low end of the
interval of its slowdown is above the margin.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.processes import ROOT, PeerProcess
from zfast.benchmark.statistics import FALSE_ALARM, MARGIN, Judgement, Verdict, judge, paired_ratios

BUILD = ROOT / "build" / "revisions"
#: Rounds by row, then seconds in the order they were taken.
Rounds = Mapping[str, Sequence[float]]


def site_of(revision: str) -> Path:
    """Build a revision of zfast into a folder for PYTHONPATH; ``.`` is the working tree.

    Raises:
        SystemExit: There is no such revision, or it does not build.
    """
    name = "working-tree" if revision == "." else _git("rev-parse", "--short", revision)
    site, source = BUILD / f"{name}-site", ROOT
    if revision != ".":
        if (site / "zfast").is_dir():
            return site
        source = BUILD / name
        shutil.rmtree(source, ignore_errors=True)
        archive = subprocess.run(
            ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(source, filter="data")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    if subprocess.run([*pip, "--target", str(site), str(source)], check=False).returncode:
        sys.exit(f"revision {revision} does not build")
    return site


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def measure(
    sites: Sequence[Path], passes: int, on_pass: Callable[[int], None] = lambda _: None
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each row's rounds, old and new taking turns."""
    sides = []
    try:
        for site in sites:
            search = os.pathsep.join([str(site), str(ROOT)])
            sides.append(
                PeerProcess([sys.executable, "-m", "bench.revision_rounds"], {"PYTHONPATH": search})
            )
        rows: list[str] = sides[0].hello["rows"]
        kept: tuple[dict[str, list[float]], dict[str, list[float]]] = (
            {row: [] for row in rows},
            {row: [] for row in rows},
        )
        for i in range(-2, passes):
            for row in rows:
                for side in (0, 1) if i % 2 else (1, 0):
                    seconds = sides[side].ask(row=row)["seconds"]
                    if i >= 0:
                        kept[side][row].append(seconds)
            on_pass(i + 1)
        return kept
    finally:
        for side in sides:
            side.close()


def judge_rows(before: Rounds, now: Rounds, margin: float = MARGIN) -> dict[str, Judgement]:
    """Each row's judgement; together they raise a false alarm in one of 100 comparisons."""
    rows = len(before)
    return {
        row: judge(paired_ratios(before[row], now[row]), rows=rows, margin=margin) for row in before
    }


def print_judgements(judgements: Mapping[str, Judgement], console: Console) -> None:
    """A table: seconds now ÷ before, its interval, and what it means."""
    table = Table()
    table.add_column("row")
    for title in ("takes now ÷ before", f"interval ({1 - FALSE_ALARM:.0%} of all rows)", "verdict"):
        table.add_column(title, justify="right")
    styles = {Verdict.SLOWER: "red", Verdict.FASTER: "green"}
    for row, judged in judgements.items():
        interval = "–" if math.isnan(judged.low) else f"{judged.low:.3f} – {judged.high:.3f}"
        table.add_row(
            row,
            f"{judged.ratio:.3f}",
            interval,
            judged.verdict.value,
            style=styles.get(judged.verdict),
        )
    console.print(table)


def compare_revisions(
    old: str, new: str, passes: int, margin: float, console: Console, output: Path | None = None
) -> int:
    """Build, measure and judge; 1 if a row is slower, 2 if there were too few passes to say."""
    sites = [site_of(revision) for revision in (old, new)]
    with console.status("measuring") as status:
        before, now = measure(sites, passes, lambda done: status.update(f"pass {done} of {passes}"))
    judgements = judge_rows(before, now, margin)
    print_judgements(judgements, console)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"old": old, "new": new, "before": before, "now": now}) + "\n")
    verdicts = {judged.verdict for judged in judgements.values()}
    if Verdict.TOO_FEW in verdicts:
        console.print("Too few passes to say anything: take at least 15.")
        return 2
    return int(Verdict.SLOWER in verdicts)
