"""Times of the tasks' own bodies, and what they alone would take."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Body:
    """One run of a task's function.

    Attributes:
        task_run_id: Prefect's id of the task run.
        task_name: The task's name.
        upstream: Ids of the task runs whose results it was given.
        start_s: When it began, on the host's monotonic clock, which all processes share.
        end_s: When it returned.
        input_nbytes: Size of the DataFrames among its arguments.
    """

    task_run_id: str
    task_name: str
    upstream: list[str]
    start_s: float
    end_s: float
    input_nbytes: int


def timed(function: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """Wrap a task's function so that each run adds a line to the file ``path``."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        start_s = time.monotonic()
        result = function(*args, **kwargs)
        end_s = time.monotonic()
        _append(path, start_s, end_s, [*args, *kwargs.values()])
        return result

    return run


def _append(path: Path, start_s: float, end_s: float, arguments: list[Any]) -> None:
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    assert context is not None
    inputs = [item for items in context.task_run.task_inputs.values() for item in items]
    body = Body(
        task_run_id=str(context.task_run.id),
        task_name=context.task.name,
        upstream=sorted({str(item.id) for item in inputs if item.input_type == "task_run"}),
        start_s=start_s,
        end_s=end_s,
        input_nbytes=sum(_frame_nbytes(argument) for argument in arguments),
    )
    line = json.dumps(asdict(body)).encode() + b"\n"
    # One write to a file opened for appending: lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def _frame_nbytes(value: object) -> int:
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        frame: pd.DataFrame = value
        return int(frame.memory_usage(deep=True).sum())
    if isinstance(value, list):
        return sum(_frame_nbytes(item) for item in value)
    return 0


def read_bodies(path: Path) -> list[Body]:
    """The runs recorded in ``path``, in the order in which they began."""
    lines = path.read_text().splitlines()
    return sorted((Body(**json.loads(line)) for line in lines), key=lambda body: body.start_s)


def shortest_s(bodies: Sequence[Body], n_workers: int) -> float:
    """How long the bodies would take if results reached the next task in no time.

    Replays them, in the order in which they began, on ``n_workers`` workers: each starts as soon
    as a worker is free and its upstream task runs have ended.

    Args:
        bodies: Sorted by start.
        n_workers: At least 1.
    """
    free_s = [0.0] * n_workers
    end_s: dict[str, float] = {}
    for body in bodies:
        worker = free_s.index(min(free_s))
        ready_s = max((end_s.get(task_run_id, 0.0) for task_run_id in body.upstream), default=0.0)
        free_s[worker] = max(free_s[worker], ready_s) + body.end_s - body.start_s
        end_s[body.task_run_id] = free_s[worker]
    return max(free_s)
