"""The user's own table, read from a Parquet or CSV file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from zfast.errors import ConfigError


def read_table(path: Path) -> pd.DataFrame:
    """Read a whole file and keep its numeric columns.

    Raises:
        ConfigError: It is missing, empty, of an unknown kind, cannot be read, or holds no number.
    """
    return _numeric_columns(path, _read(path))


def _read(path: Path) -> pd.DataFrame:
    kind = path.suffix.lower()
    if kind not in (".parquet", ".csv"):
        raise ConfigError(
            f"{path}: cannot tell what kind of file this is",
            hint="give a file whose name ends in .parquet or .csv",
        )
    if not path.is_file():
        what = "this is not a file" if path.exists() else "there is no such file"
        raise ConfigError(f"{path}: {what}", hint="check the path given with --input")
    try:
        if path.stat().st_size == 0:
            raise _empty(path)
        return pd.read_csv(path) if kind == ".csv" else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise _empty(path) from None
    # pyarrow's errors are ValueError, OSError or NotImplementedError as well.
    except (ValueError, OSError, NotImplementedError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path}: cannot be read as {kind[1:]}",
            detail=str(error),
            hint="check that it opens with pandas",
        ) from error


def _numeric_columns(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        raise _empty(path)
    numeric = frame.select_dtypes("number")
    if numeric.columns.empty:
        raise ConfigError(
            f"{path}: none of its {len(frame.columns)} columns is numeric",
            hint="the demo computes count, sum, mean, minimum and maximum of numeric columns",
        )
    return numeric


def _empty(path: Path) -> ConfigError:
    return ConfigError(f"{path}: the file holds no rows", hint="give a table with data in it")
