"""The flow for the user's own table: describe each part of its rows, then reduce."""

# Prefect's types know results as arguments of a task, not the futures of results.
# mypy: disable-error-code="call-overload"

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, task

from zfast.demo.table import read_table

N_PARTS = 4


@task
def load(path: str) -> pd.DataFrame:
    """The numeric columns of the file."""
    return read_table(Path(path))


@task
def describe_part(table: pd.DataFrame, part: int) -> pd.DataFrame:
    """Count, sum, minimum and maximum by column, of one part of the rows."""
    start, stop = (len(table) * bound // N_PARTS for bound in (part, part + 1))
    return table.iloc[start:stop].agg(["count", "sum", "min", "max"])


@task
def combine(parts: list[pd.DataFrame]) -> dict[str, Any]:
    """The same of the whole table, and the mean."""
    every = pd.concat(parts)
    total = pd.DataFrame(
        {
            "count": every.loc["count"].sum(),
            "sum": every.loc["sum"].sum(),
            "min": every.loc["min"].min(),
            "max": every.loc["max"].max(),
        }
    )
    total["mean"] = total["sum"] / total["count"]
    return {"columns": total.rename_axis("column").reset_index().to_dict("records")}


@flow
def describe_table(path: str) -> dict[str, Any]:
    """Load the table, describe its parts, then reduce."""
    table = load.submit(path)
    parts = [describe_part.submit(table, part) for part in range(N_PARTS)]
    return combine.submit(parts).result()
