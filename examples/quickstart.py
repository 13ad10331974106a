"""Two tasks and a DataFrame between them, on warm worker processes.

Run: python examples/quickstart.py
"""

import numpy as np
import pandas as pd
from prefect import flow, task

from zfast import ZfastTaskRunner


@task
def measure(n_rows: int) -> pd.DataFrame:
    return pd.DataFrame({"sensor": np.arange(n_rows) % 4, "reading": np.arange(n_rows) / 7})


@task
def mean_by_sensor(readings: pd.DataFrame) -> pd.Series:
    return readings.groupby("sensor")["reading"].mean()


@flow(task_runner=ZfastTaskRunner(max_workers=2))
def quickstart(n_rows: int = 1_000_000) -> pd.Series:
    return mean_by_sensor.submit(measure.submit(n_rows)).result()


if __name__ == "__main__":
    print(quickstart())
