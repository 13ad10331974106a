"""A flow of many tasks that fail, retry, crash, are cached and killed: is each state told?

    python tests/soak_states.py [--tasks 300] [--runner thread --runner zfast]

What a subscriber was told of each run is compared with what Prefect's API has.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect
from prefect import flow, get_client, task
from prefect.cache_policies import INPUTS
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

import zfast
from zfast.events.event import StateEvent
from zfast.events.subscription import Subscription

#: The API learns of task runs' states from events.
API_S = 30.0
RUNNERS: dict[str, Callable[[], Any]] = {
    "thread": lambda: ThreadPoolTaskRunner(max_workers=2),
    "process": lambda: ProcessPoolTaskRunner(max_workers=2),
    "zfast": lambda: zfast.ZfastTaskRunner(max_workers=2, max_worker_deaths=2),
}
#: Tasks whose workers are killed, where the runner replays them.
KILLED = ("dies_once", "dies_always")
#: What a worker says in the milliseconds before it is killed by its task.
LAST_WORDS = ("Pending", "Running")

#: For each run, by kind, id and name: names and ids of its states.
States = dict[tuple[str, str, str], list[tuple[str, str]]]


class Boom(BaseException):
    """Ends a task run as Crashed."""


@task
def works(number: int) -> int:
    return number


@task(retries=1)
def works_later(number: int) -> int:
    if prefect.runtime.task_run.run_count < 2:
        raise ValueError("not yet")
    return number


@task
def fails(number: int) -> int:
    raise RuntimeError("never")


@task(cache_policy=INPUTS, persist_result=True)
def cached(salt: int, number: int) -> int:
    return number


@task
def crashes(number: int) -> None:
    raise Boom


@task
def dies_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@task
def dies_always(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def inner() -> int:
    return works(1)


@flow
def eventful(n_tasks: int, n_killed: int, folder: Path) -> str:
    """So many task runs, as many of each kind; ``n_killed`` of them with their worker."""
    salt = time.time_ns()
    futures: list[Any] = [dies_once.submit(folder / str(number)) for number in range(n_killed)]
    futures += [dies_always.submit(number) for number in range((n_killed + 3) // 4)]
    inner()
    cached.submit(salt, 0).wait()
    submitted = (works, works_later, fails)
    for number in range(n_tasks - len(futures) - 2):
        kind = number % 5
        if kind < len(submitted):
            futures.append(submitted[kind].submit(number))
        elif kind == 3:
            futures.append(cached.submit(salt, 0))
        else:
            with contextlib.suppress(Boom):
                crashes(number)  # here: it would break a process pool
    for future in futures:
        future.wait()
    return "done"


class Told:
    """What a subscriber was told, in order."""

    def __init__(self, **filters: Any) -> None:
        self.events: list[Any] = []
        self._subscription = Subscription(**filters)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def end(self) -> None:
        self._subscription.close()
        self._thread.join()

    def states(self) -> States:
        """Names and ids of the states of each run: kind, id, and name of task or flow.

        Of a run that two processes had, what both said lies in the order of its time.
        """
        runs: defaultdict[tuple[str, str, str], list[StateEvent]] = defaultdict(list)
        for event in self.events:
            assert isinstance(event, StateEvent), event
            runs[event.kind, event.run_id, event.name].append(event)
        return {
            run: [
                (event.state_name, event.state_id)
                for event in (
                    sorted(events, key=lambda event: event.state_ns) if run[2] in KILLED else events
                )
            ]
            for run, events in runs.items()
        }

    def names(self) -> set[tuple[str, str]]:
        return {(event.name, event.state_name) for event in self.events}

    def _read(self) -> None:
        with self._subscription as events:
            self.events.extend(events)


def assert_api_agrees(states: States) -> int:
    """Each run has the states that the API has, in its order.

    Of a run whose worker was killed, either may lack what the worker said last: the states of the
    attempt that died. What both have is in one order, and both have the end.

    Returns:
        How many such states the API has and the subscriber was not told.
    """
    deadline = time.monotonic() + API_S
    n_not_told = 0
    with get_client(sync_client=True) as client:
        for (kind, run_id, name), told in states.items():
            read = (
                client.read_task_run_states if kind == "task-run" else client.read_flow_run_states
            )
            while True:
                known = sorted(read(UUID(run_id)), key=lambda state: state.timestamp)
                api = [(state.name, str(state.id)) for state in known]
                heard, lost = told, []
                if name in KILLED:
                    lost = [state for state in api if state not in told and state[0] in LAST_WORDS]
                    heard = [state for state in told if state in api]
                    api = [state for state in api if state not in lost]
                if (api == heard and told[-1] in api) or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            assert heard == api, f"{kind} {name} {run_id}: told {told}, the API has {api}"
            assert told[-1] in api
            n_not_told += len(lost)
    return n_not_told


def run(runner: str, n_tasks: int, n_killed: int) -> States:
    """Run the flow, and compare; the states of each run that were told."""
    with tempfile.TemporaryDirectory(prefix="zfs-") as runtime:
        os.environ["XDG_RUNTIME_DIR"] = runtime
        told = Told()
        try:
            with tempfile.TemporaryDirectory() as folder, zfast.broadcast():
                eventful.with_options(task_runner=RUNNERS[runner]())(
                    n_tasks, n_killed, Path(folder), return_state=True
                )
        finally:
            told.end()
    states = told.states()
    n_runs = Counter(kind for kind, _, _ in states)
    assert n_runs == {"task-run": n_tasks, "flow-run": 2}, n_runs
    n_not_told = assert_api_agrees(states)
    print(f"{runner}: {n_not_told} last words of killed workers were not told", flush=True)
    return states


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--runner", action="append", choices=list(RUNNERS))
    options = parser.parse_args()
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=60):
        for runner in options.runner or ["thread", "zfast"]:
            start = time.monotonic()
            n_killed = options.tasks // 25 if runner == "zfast" else 0
            states = run(runner, options.tasks, n_killed)
            names = Counter(name for told in states.values() for name, _ in told)
            print(
                f"{runner}: {len(states)} runs, {sum(names.values())} states as the API has them "
                f"in {time.monotonic() - start:.0f} s: {dict(names)}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
