"""The benchmarks' command line: ``python -m bench run | report | compare``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
BASELINES = FOLDER / "baselines"
GROUPS = sorted(path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py"))
#: Wide enough for the tables when the output goes to a file.
FILE_WIDTH = 140


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
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [str(FOLDER / f"test_{group}.py") for group in arguments.group or GROUPS]
    command = [sys.executable, "-m", "pytest", *files, f"--benchmark-json={path}"]
    command += ["--benchmark-columns=min,median,iqr,rounds", "-q"]
    command += [f"--{name}" for name in ("smoke", "huge") if getattr(arguments, name)]
    status = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode
    if not path.exists() or path.stat().st_size == 0:
        console.print("[red]There are no results to report.")
        return status or 1
    _report(path, arguments, console)
    return status


def report(arguments: argparse.Namespace, console: Console) -> int:
    """Report a run that was made before."""
    _report(arguments.json or _newest(), arguments, console)
    return 0


def compare(arguments: argparse.Namespace, console: Console) -> int:
    """Compare two runs, each a path or a baseline's name."""
    from bench.compare import print_comparison
    from bench.rows import load_run

    print_comparison(load_run(_find(arguments.baseline)), load_run(_find(arguments.new)), console)
    return 0


def _report(path: Path, arguments: argparse.Namespace, console: Console) -> None:
    from bench.chart import draw_chart
    from bench.compare import save_baseline
    from bench.report import print_report
    from bench.rows import load_run

    results = load_run(path)
    print_report(results, console)
    chart = arguments.chart or path.with_suffix(".png")
    draw_chart(results, chart)
    console.print(f"results: {path}\nchart: {chart}", highlight=False, soft_wrap=True)
    if arguments.save_baseline:
        baseline = BASELINES / f"{arguments.save_baseline}.json"
        save_baseline(path, baseline)
        console.print(f"baseline: {baseline}", highlight=False, soft_wrap=True)


def _newest() -> Path:
    paths = sorted(RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime)
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
    one.add_argument("--huge", action="store_true", help="transports up to 4 GB: wants 20 GB free")
    one.add_argument("--group", nargs="+", choices=GROUPS, help="only these groups")
    one.add_argument("--json", type=Path, help="where the results go")
    one.set_defaults(command=run)

    one = commands.add_parser("report", parents=[output], help="report a run")
    one.add_argument("json", nargs="?", type=Path, help="default: the newest")
    one.set_defaults(command=report)

    one = commands.add_parser("compare", help="compare two runs")
    one.add_argument("baseline", help="a path, or a baseline's name")
    one.add_argument("new", help="a path, or a baseline's name")
    one.set_defaults(command=compare)
    return parser


if __name__ == "__main__":
    sys.exit(main())
