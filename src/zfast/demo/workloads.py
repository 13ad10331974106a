"""What the demo can run: the flights of New York, or the user's own table."""

from __future__ import annotations

from pathlib import Path

from zfast.demo.comparison import Workload
from zfast.demo.table import read_table

FLIGHTS_A_YEAR = 336_776


def flights_workload(n_years: int) -> Workload:
    """The flights of 2013, repeated for so many years."""
    rows = n_years * FLIGHTS_A_YEAR
    return Workload(
        flow="zfast.demo.flow:flight_delays",
        parameters={"n_years": n_years},
        warm_up_parameters={"n_years": 1},
        title=f"delays of {rows:,} flights from New York by airline and destination",
    )


def table_workload(path: Path) -> Workload:
    """The user's own table.

    Raises:
        ConfigError: The file is missing, empty, cannot be read, or holds no number.
    """
    # Read it all here: in a flow an error would come out wrapped in those of the tasks after it.
    read_table(path)
    parameters = {"path": str(path.resolve())}
    return Workload(
        flow="zfast.demo.describe:describe_table",
        parameters=parameters,
        warm_up_parameters=parameters,
        title=f"count, sum, mean, minimum and maximum of the columns of {path.name}",
    )
