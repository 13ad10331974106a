"""One flow on several task runners: their figures side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from zfast.demo.bodies import read_bodies, shortest_s
from zfast.demo.driver import Order, Outcome
from zfast.demo.memory import PeakMemory
from zfast.demo.server import prefect_environment
from zfast.demo.workspace import Workspace
from zfast.errors import ZfastError

RUNNER_NAMES = {
    "thread": "ThreadPoolTaskRunner",
    "process": "ProcessPoolTaskRunner",
    "zfast": "ZfastTaskRunner",
}
_POLL_S = 0.1


class Progress(Protocol):
    """Who is told how far the demo is."""

    def step(self, text: str) -> None:
        """Something begins."""

    def update(self, text: str) -> None:
        """How far the step is."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A flow and its parameters.

    Attributes:
        flow: ``module:name``.
        parameters: JSON values by name.
        warm_up_parameters: Those of the run that is not measured; it may be smaller.
        title: What it does, in a line.
    """

    flow: str
    parameters: dict[str, Any]
    warm_up_parameters: dict[str, Any]
    title: str


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one runner.

    Attributes:
        runner: ``thread``, ``process`` or ``zfast``.
        wall_s: From calling the flow until it returned.
        first_task_s: From calling the flow until the first task's body began.
        bodies_s: What the tasks' bodies alone take on so many workers, replayed from their
            measured times.
        lost_s: The rest: ``wall_s - first_task_s - bodies_s``.
        handed_nbytes: Size of all DataFrames given from task to task.
        n_tasks: Task runs.
        peak_memory_nbytes: Of the flow's process and its children together.
        memory_kind: ``PSS`` or ``RSS``.
    """

    runner: str
    wall_s: float
    first_task_s: float
    bodies_s: float
    lost_s: float
    handed_nbytes: int
    n_tasks: int
    peak_memory_nbytes: int
    memory_kind: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs of all runners and the one answer they gave."""

    title: str
    max_workers: int
    runs: list[Run]
    answer: dict[str, Any]


def compare(
    workload: Workload, runners: Sequence[str], max_workers: int, progress: Progress
) -> Comparison:
    """Run the workload once on each runner, each in a process of its own.

    One run before them is not measured: it brings files into the page cache and warms the server,
    which would else be charged to the first.

    Raises:
        ZfastError: The server did not start, a run failed, or the runners' answers differ.
    """
    answers: dict[str, Any] = {}
    runs = []

    def order(name: str, runner: str, parameters: dict[str, Any]) -> Order:
        return Order(
            flow=workload.flow,
            parameters=parameters,
            runner=runner,
            max_workers=max_workers,
            bodies_path=str(workspace.folder / f"{name}.bodies"),
            outcome_path=str(workspace.folder / f"{name}.outcome"),
        )

    with Workspace() as workspace:
        own_url = os.environ.get("PREFECT_API_URL")
        progress.step(f"using the server at {own_url}" if own_url else "starting a private server")
        with prefect_environment(workspace) as environment:
            progress.step("warming up, not measured")
            warm_up = order("warm-up", "thread", workload.warm_up_parameters)
            _run(workspace, environment, "warm-up", warm_up, progress)
            for runner in runners:
                progress.step(f"running on {RUNNER_NAMES[runner]}(max_workers={max_workers})")
                measured = order(runner, runner, workload.parameters)
                run, answers[runner] = _run(workspace, environment, runner, measured, progress)
                runs.append(run)
            progress.step("cleaning up")
    first = answers[runners[0]]
    for runner, answer in answers.items():
        if answer != first:
            raise ZfastError(
                f"{RUNNER_NAMES[runner]} gave another answer than {RUNNER_NAMES[runners[0]]}",
                detail=f"{answer}\ninstead of\n{first}",
            )
    return Comparison(workload.title, max_workers, runs, first)


def _run(
    workspace: Workspace,
    environment: Mapping[str, str],
    name: str,
    order: Order,
    progress: Progress,
) -> tuple[Run, Any]:
    folder = workspace.folder
    order_path = folder / f"{name}.order"
    order_path.write_text(json.dumps(asdict(order)))
    driver = workspace.start(
        name,
        [sys.executable, "-m", "zfast.demo.driver", str(order_path)],
        # The runtime folders of a driver that is killed go with the workspace.
        {**environment, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)},
    )
    with PeakMemory(driver.pid) as memory:
        _wait(driver, Path(order.bodies_path), progress)
    status = driver.returncode
    workspace.stop(driver)
    if status != 0:
        cause = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        raise ZfastError(
            f"the flow failed on {RUNNER_NAMES[order.runner]}: {cause}",
            detail=workspace.log_errors(name),
        )
    outcome = Outcome(**json.loads(Path(order.outcome_path).read_text()))
    bodies = read_bodies(Path(order.bodies_path))
    wall_s = outcome.end_s - outcome.start_s
    first_task_s = bodies[0].start_s - outcome.start_s
    bodies_s = shortest_s(bodies, order.max_workers)
    run = Run(
        runner=order.runner,
        wall_s=wall_s,
        first_task_s=first_task_s,
        bodies_s=bodies_s,
        lost_s=wall_s - first_task_s - bodies_s,
        handed_nbytes=sum(body.input_nbytes for body in bodies),
        n_tasks=len(bodies),
        peak_memory_nbytes=memory.nbytes,
        memory_kind=memory.kind,
    )
    return run, outcome.answer


def _wait(driver: subprocess.Popen[bytes], bodies_path: Path, progress: Progress) -> None:
    start_s = time.monotonic()
    while True:
        try:
            driver.wait(_POLL_S)
            return
        except subprocess.TimeoutExpired:
            n_done = len(bodies_path.read_text().splitlines()) if bodies_path.exists() else 0
            progress.update(f"{n_done} tasks done, {time.monotonic() - start_s:.0f} s")
