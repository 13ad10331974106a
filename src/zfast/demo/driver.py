"""The process that runs the demo's flow once, on one task runner."""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


@dataclass(frozen=True, slots=True)
class Order:
    """What a driver is to run.

    Attributes:
        flow: ``module:name``.
        parameters: The flow's.
        runner: ``thread``, ``process`` or ``zfast``.
        max_workers: The runner's.
        bodies_path: Gets one line for each task run; see ``zfast.demo.bodies``.
        outcome_path: Gets the ``Outcome``.
    """

    flow: str
    parameters: dict[str, Any]
    runner: str
    max_workers: int
    bodies_path: str
    outcome_path: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        start_s: When the flow was called, on the host's monotonic clock.
        end_s: When it returned.
        answer: What it returned, as JSON has it.
    """

    start_s: float
    end_s: float
    answer: Any


def _task_runner(order: Order) -> TaskRunner[Any]:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    from zfast import ZfastTaskRunner

    if order.runner == "thread":
        return ThreadPoolTaskRunner(max_workers=order.max_workers)
    if order.runner == "process":
        return ProcessPoolTaskRunner(max_workers=order.max_workers)
    return ZfastTaskRunner(max_workers=order.max_workers)


def _run(order: Order) -> Outcome:
    from prefect import Task

    from zfast.demo.bodies import timed

    module_name, _, flow_name = order.flow.partition(":")
    module = importlib.import_module(module_name)
    for value in vars(module).values():
        if isinstance(value, Task):
            value.fn = timed(value.fn, Path(order.bodies_path))
    flow = getattr(module, flow_name).with_options(task_runner=_task_runner(order))
    start_s = time.monotonic()
    answer = flow(**order.parameters)
    return Outcome(start_s, time.monotonic(), _plain(answer))


def _plain(value: Any) -> Any:
    """The value as JSON can have it: Python's numbers, and None for not-a-number."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def main() -> None:
    """Run the order in the JSON file named by the first argument."""
    order = Order(**json.loads(Path(sys.argv[1]).read_text()))
    outcome = _run(order)
    Path(order.outcome_path).write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
