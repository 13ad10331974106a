"""Flows that are wide, deep, narrow at the end and nested: does all end, and does the API know all?

    python tests/soak_shapes.py [--scale 1.0] [--runner zfast --runner thread]

Every task logs a line. Prints the time and the driver's memory for each task of maps of growing
width, then of 100 deep chains, a fan-in of 1,000 and maps in maps in maps.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from uuid import UUID

import psutil
from prefect import flow, get_client, get_run_logger, runtime, task
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)

from soak_states import RUNNERS

MAPS = (250, 500, 1000, 2000)
CHAINS, DEPTH = 10, 100
FAN_IN = 1000
NESTED, LEVELS = 4, 3
#: The server writes down states and logs after the flow has ended, some tens a second.
API_S = 600.0
PAGE = 200


@task
def add(number: int, more: int = 1) -> int:
    get_run_logger().info("adding")
    return number + more


@task
def total(numbers: list[int]) -> int:
    get_run_logger().info("adding up")
    return sum(numbers)


@task
def spread(width: int, levels: int) -> int:
    """Map itself, so many levels deep."""
    get_run_logger().info("level %d", levels)
    if levels == 0:
        return 1
    return sum(spread.map([width] * width, levels=levels - 1).result())


@flow
def wide(width: int) -> tuple[UUID, int, float]:
    # Workers have started, and imported, before the time counts.
    add.map(range(8)).wait()
    start = time.perf_counter()
    assert add.map(range(width)).result() == [number + 1 for number in range(width)]
    return _run_id(), width + 8, (time.perf_counter() - start) / width


@flow
def deep(chains: int, depth: int) -> tuple[UUID, int, float]:
    start = time.perf_counter()
    ends: list[Any] = list(range(chains))
    for _ in range(depth):
        ends = [add.submit(end) for end in ends]
    assert [end.result() for end in ends] == [number + depth for number in range(chains)]
    return _run_id(), chains * depth, (time.perf_counter() - start) / (chains * depth)


@flow
def narrow(width: int) -> tuple[UUID, int, float]:
    start = time.perf_counter()
    assert total.submit(add.map([0] * width)).result() == width
    return _run_id(), width + 1, (time.perf_counter() - start) / (width + 1)


@flow
def nested(width: int, levels: int) -> tuple[UUID, int, float]:
    start = time.perf_counter()
    assert spread.submit(width, levels).result() == width**levels
    n_tasks = sum(width**level for level in range(levels + 1))
    return _run_id(), n_tasks, (time.perf_counter() - start) / n_tasks


def _run_id() -> UUID:
    return UUID(runtime.flow_run.id)


def assert_api_knows(flow_run_id: UUID, n_tasks: int) -> None:
    """Every task run of the flow run has completed, once, and has logged its line, once."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    logs_of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    deadline = time.monotonic() + API_S
    with get_client(sync_client=True) as client:

        def pages(read: Any, **filters: Any) -> list[Any]:
            found: list[Any] = []
            while page := read(**filters, limit=PAGE, offset=len(found)):
                found += page
            return found

        while True:
            runs = pages(client.read_task_runs, flow_run_filter=of_run)
            lines = [
                line.task_run_id
                for line in pages(client.read_logs, log_filter=logs_of_run)
                if line.message.startswith(("adding", "level"))
            ]
            n_completed = sum(run.state is not None and run.state.is_completed() for run in runs)
            # Lines themselves, not their number: what is written between two pages shifts them.
            all_there = sorted(lines) == sorted(run.id for run in runs)
            if (n_completed == n_tasks and all_there) or time.monotonic() > deadline:
                break
            time.sleep(1)
    assert (len(runs), n_completed) == (n_tasks, n_tasks)
    assert sorted(lines) == sorted(run.id for run in runs)
    assert all(run.run_count == 1 for run in runs)


def soak(runner: str, scale: float) -> None:
    """Run every shape; AssertionError if something is missing."""
    me = psutil.Process()

    def scaled(count: int) -> int:
        return max(2, round(count * scale))

    shapes: list[tuple[str, Any, tuple[int, ...]]] = [
        *((f"a map of {scaled(n)}", wide, (scaled(n),)) for n in MAPS),
        (f"{scaled(CHAINS)} chains of {scaled(DEPTH)}", deep, (scaled(CHAINS), scaled(DEPTH))),
        (f"a fan-in of {scaled(FAN_IN)}", narrow, (scaled(FAN_IN),)),
    ]
    if runner != "thread":  # tasks that wait for tasks of their own pool would wait for ever
        shapes.append((f"maps of {NESTED}, {LEVELS} deep", nested, (NESTED, LEVELS)))
    for name, shape, arguments in shapes:
        before_nbytes = me.memory_info().rss
        run_id, n_tasks, seconds = shape.with_options(task_runner=RUNNERS[runner]())(*arguments)
        grown_mib = (me.memory_info().rss - before_nbytes) / 2**20
        start = time.monotonic()
        assert_api_knows(run_id, n_tasks)
        print(
            f"{runner}, {name}: {n_tasks} tasks, {seconds * 1e3:.1f} ms each, the driver grew by "
            f"{grown_mib:.0f} MiB; the API had all after {time.monotonic() - start:.0f} s",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runner", action="append", choices=list(RUNNERS))
    options = parser.parse_args()
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=60):
        for runner in options.runner or ["zfast"]:
            soak(runner, options.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
