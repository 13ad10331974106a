"""The benchmarks' command line: ``python -m bench run | limits | report | compare | revisions``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from bench.limits_table import SUFFIX as LIMITS_SUFFIX
from bench.limits_table import limits_path, load_limits, markdown_limits, print_limits, save_limits
from bench.rows import load_run

FOLDER = Path(__file__).resolve().parent
REVISIONS_SUFFIX = ".revisions.json"
RESULTS = FOLDER / "results"
BASELINES = FOLDER / "baselines"
GROUPS = sorted(path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py"))
#: Wide enough for the tables when the output goes to a file.
FILE_WIDTH = 160


def main() -> int:
    """Run a command; return the exit status."""
    arguments = _parser().parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
    try:
        status: int = arguments.command(arguments, console)
    except FileNotFoundError as error:
        console.print(f"[red]{error}")
        return 2
    return status


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the benchmarks and report them, rows that were lost too."""
    path: Path = arguments.json or RESULTS / f"{datetime.now():%Y%m%d-%H%M%S}.json"
    path = path.resolve()
    _measure_limits(limits_path(path), arguments.smoke, console)
    files = [str(FOLDER / f"test_{group}.py") for group in arguments.group or GROUPS]
    command = [sys.executable, "-m", "pytest", *files, f"--benchmark-json={path}"]
    command += ["--benchmark-columns=min,median,iqr,rounds", "-q"]
    if arguments.passes:
        command.append(f"--passes={arguments.passes}")
    command += [f"--{name}" for name in ("smoke", "huge") if getattr(arguments, name)]
    status = _run_to_its_end(command)
    if not path.exists() or path.stat().st_size == 0:
        console.print("[red]There are no results to report.")
        return status or 1
    _report(path, arguments, console)
    return status


def limits(arguments: argparse.Namespace, console: Console) -> int:
    """Measure what the machine itself can do, print it and keep it."""
    path: Path = arguments.json or limits_path(RESULTS / f"{datetime.now():%Y%m%d-%H%M%S}.json")
    _measure_limits(path.resolve(), arguments.smoke, console)
    return 0


def report(arguments: argparse.Namespace, console: Console) -> int:
    """Report a run that was made before."""
    path = arguments.json or _newest()
    if arguments.markdown:
        from bench.report import markdown_report

        print(markdown_limits(load_limits(path)), markdown_report(load_run(path)), sep="\n\n")
        return 0
    print_limits(load_limits(path), console)
    _report(path, arguments, console)
    return 0


def compare(arguments: argparse.Namespace, console: Console) -> int:
    """Compare two runs, each a path or a baseline's name."""
    from bench.compare import print_comparison

    print_comparison(load_run(_find(arguments.baseline)), load_run(_find(arguments.new)), console)
    return 0


def revisions(arguments: argparse.Namespace, console: Console) -> int:
    """Measure two revisions in turns; 1 if the new one is slower."""
    from bench.revisions import compare_revisions

    path: Path = arguments.json or RESULTS / f"{datetime.now():%Y%m%d-%H%M%S}{REVISIONS_SUFFIX}"
    return compare_revisions(
        arguments.old, arguments.new, arguments.passes, arguments.margin, console, path
    )


def _run_to_its_end(command: list[str]) -> int:
    """Run pytest. A Ctrl-C reaches it too: it is left the time to end servers and peers."""
    process = subprocess.Popen(command, cwd=FOLDER.parent)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _measure_limits(path: Path, smoke: bool, console: Console) -> None:
    from zfast.benchmark.limits import measure_limits

    path.parent.mkdir(parents=True, exist_ok=True)
    measured = measure_limits(smoke)
    print_limits(measured, console)
    save_limits(measured, path)
    console.print(f"limits: {path}", highlight=False, soft_wrap=True)


def _report(path: Path, arguments: argparse.Namespace, console: Console) -> None:
    from bench.chart import draw_ratios
    from bench.compare import save_baseline
    from bench.growth_chart import draw_growth
    from bench.handover_chart import draw_handover
    from bench.report import print_report

    results = load_run(path)
    print_report(results, console)
    console.print(f"results: {path}", highlight=False, soft_wrap=True)
    chart = arguments.chart or path.with_suffix(".png")
    for draw, name in ((draw_ratios, ""), (draw_handover, "-handover"), (draw_growth, "-growth")):
        drawn = chart.with_stem(f"{chart.stem}{name}")
        if draw(results, drawn):
            console.print(f"chart: {drawn}", highlight=False, soft_wrap=True)
    if arguments.save_baseline:
        baseline = BASELINES / f"{arguments.save_baseline}.json"
        save_baseline(path, baseline)
        console.print(f"baseline: {baseline}", highlight=False, soft_wrap=True)


def _newest() -> Path:
    others = (LIMITS_SUFFIX, REVISIONS_SUFFIX)
    runs = [path for path in RESULTS.glob("*.json") if not path.name.endswith(others)]
    paths = sorted(runs, key=lambda path: path.stat().st_mtime)
    if not paths:
        raise FileNotFoundError("there is no run yet: python -m bench run")
    return paths[-1]


def _find(name: str) -> Path:
    path, baseline = Path(name), BASELINES / f"{name}.json"
    return baseline if baseline.exists() and not path.exists() else path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--chart", type=Path, help="where to draw it (.png, .svg)")
    output.add_argument("--save-baseline", metavar="NAME", help="keep it in bench/baselines")

    one = commands.add_parser("run", parents=[output], help="run the benchmarks and report them")
    one.add_argument("--smoke", action="store_true", help="each once and small; no timings count")
    one.add_argument("--passes", type=int, help="a shorter run: at most so many in each group")
    one.add_argument("--huge", action="store_true", help="transports up to 4 GB: wants 20 GB free")
    one.add_argument("--group", nargs="+", choices=GROUPS, help="only these groups")
    one.add_argument("--json", type=Path, help="where the results go")
    one.set_defaults(command=run)

    one = commands.add_parser("limits", help="measure what the machine itself can do")
    one.add_argument("--smoke", action="store_true", help="once and small; no timings count")
    one.add_argument("--json", type=Path, help="where they go")
    one.set_defaults(command=limits)

    one = commands.add_parser("report", parents=[output], help="report a run")
    one.add_argument("--markdown", action="store_true", help="tables to paste; no charts")
    one.add_argument("json", nargs="?", type=Path, help="default: the newest")
    one.set_defaults(command=report)

    one = commands.add_parser("compare", help="compare two runs")
    one.add_argument("baseline", help="a path, or a baseline's name")
    one.add_argument("new", help="a path, or a baseline's name")
    one.set_defaults(command=compare)

    one = commands.add_parser("revisions", help="measure two revisions in turns, and judge")
    one.add_argument("old", help="a revision that git knows")
    one.add_argument("new", nargs="?", default=".", help="another; default: the working tree")
    one.add_argument("--passes", type=int, default=101)
    one.add_argument("--margin", type=float, default=0.02, help="a slowdown below is accepted")
    one.add_argument("--json", type=Path, help="where the seconds go")
    one.set_defaults(command=revisions)
    return parser


if __name__ == "__main__":
    sys.exit(main())
