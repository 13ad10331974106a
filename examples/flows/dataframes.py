"""DataFrames from task to task without a copy: written for DaskTaskRunner, one line changed.

Run: python examples/flows/dataframes.py
"""

import numpy as np
import pandas as pd
from prefect import flow, task

from zfast import ZfastTaskRunner


@task
def load(day: int, n_rows: int) -> pd.DataFrame:
    readings = np.random.default_rng(day).normal(size=n_rows)
    return pd.DataFrame({"sensor": np.arange(n_rows) % 8, "reading": readings})


@task
def clean(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["reading"].abs() < 2.0]


@task
def summarise(frames: list[pd.DataFrame]) -> pd.Series:
    return pd.concat(frames).groupby("sensor")["reading"].mean()


@flow(task_runner=ZfastTaskRunner(max_workers=2))
def sensors(n_days: int = 4, n_rows: int = 100_000) -> pd.Series:
    cleaned = [clean.submit(load.submit(day, n_rows)) for day in range(n_days)]
    return summarise.submit(cleaned).result()


if __name__ == "__main__":
    print(sensors())
