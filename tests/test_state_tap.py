"""Real flows whose states are broadcast: what a subscriber is told, and what it costs the flow."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect
import pytest
from prefect import flow, get_client, task
from prefect.cache_policies import INPUTS
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

import zfast
from zfast.errors import ConfigError
from zfast.events.event import StateEvent
from zfast.events.publisher import Publisher
from zfast.events.subscription import Subscription
from zfast.prefect import internals, state_tap

TASKS = 8
#: The API learns of task runs' states from events.
API_S = 20.0


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
def cached(number: int) -> int:
    return number


@task
def crashes() -> None:
    raise Boom


@task
async def works_async(number: int) -> int:
    return number


@flow
def inner() -> int:
    return works(1)


@flow
def eventful(salt: int) -> str:
    futures: list[Any] = []
    for number in range(TASKS):
        futures += [works.submit(number), works_later.submit(number), fails.submit(number)]
    cached(salt)
    cached(salt)
    try:
        crashes()
    except Boom:
        pass
    inner()
    for future in futures:
        future.wait()
    return "done"


@flow
async def eventful_async() -> int:
    return await works_async(1)


@flow
def failing() -> None:
    raise RuntimeError("no flow")


class Told:
    """What a subscriber was told, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._subscription = Subscription()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def end(self) -> None:
        self._subscription.close()
        self._thread.join()

    def states(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """Names and ids of the states of each run, kind and id."""
        runs = defaultdict(list)
        for event in self.events:
            assert isinstance(event, StateEvent), event
            runs[event.kind, event.run_id].append((event.state_name, event.state_id))
        return dict(runs)

    def names(self) -> set[tuple[str, str]]:
        return {(event.name, event.state_name) for event in self.events}

    def _read(self) -> None:
        with self._subscription as events:
            self.events.extend(events)


@pytest.fixture
def told(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Iterator[Told]:
    runtime = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    told = Told()
    yield told
    told.end()


def assert_api_agrees(states: dict[tuple[str, str], list[tuple[str, str]]]) -> None:
    deadline = time.monotonic() + API_S
    with get_client(sync_client=True) as client:
        for (kind, run_id), told in states.items():
            read = (
                client.read_task_run_states if kind == "task-run" else client.read_flow_run_states
            )
            while True:
                known = sorted(read(UUID(run_id)), key=lambda state: state.timestamp)
                api = [(state.name, str(state.id)) for state in known]
                if api == told or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            assert told == api, f"{kind} {run_id}"


RUNNERS: dict[str, Callable[[], Any]] = {
    "thread": lambda: ThreadPoolTaskRunner(max_workers=2),
    "process": lambda: ProcessPoolTaskRunner(max_workers=2),
    "zfast": lambda: zfast.ZfastTaskRunner(max_workers=2),
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_each_run_has_the_states_that_the_api_has(
    runner: str, prefect_api: str, told: Told
) -> None:
    with zfast.broadcast():
        state = eventful.with_options(task_runner=RUNNERS[runner]())(
            time.time_ns(), return_state=True
        )
    assert state.is_completed()
    states = told.states()
    assert len(states) == 3 * TASKS + 3 + 1 + 2  # task runs; the inner one; two flow runs
    assert told.names() >= {
        ("works", "Completed"), ("works_later", "Retrying"), ("fails", "Failed"),
        ("cached", "Cached"), ("crashes", "Crashed"), ("eventful", "Running"),
        ("eventful", "Pending"), ("eventful", "Completed"), ("inner", "Completed"),
    }  # fmt: skip
    assert {event.flow_name for event in told.events} == {"eventful", "inner"}
    assert_api_agrees(states)


def test_async_flows_and_flows_that_fail(prefect_api: str, told: Told) -> None:
    import asyncio

    with zfast.broadcast():
        assert asyncio.run(eventful_async()) == 1
        failing(return_state=True)
    assert told.names() >= {
        ("works_async", "Completed"), ("eventful-async", "Completed"), ("failing", "Failed")
    }  # fmt: skip
    assert_api_agrees(told.states())


def test_only_what_was_chosen_is_broadcast(prefect_api: str, told: Told) -> None:
    with zfast.broadcast(flows=["failing"], kinds=["flow-run"], states=["failed"]):
        failing(return_state=True)
        inner()
    assert [(event.name, event.state_name) for event in told.events] == [("failing", "Failed")]
    with zfast.broadcast(flows=["nothing"]):
        inner()
    inner()  # nobody broadcasts any more
    assert len(told.events) == 1


def test_a_decorated_flow_is_the_same_flow(prefect_api: str, told: Told) -> None:
    decorated = zfast.broadcast(flow(name="decorated")(lambda: 7))
    try:
        assert decorated() == 7
        assert isinstance(decorated, prefect.Flow)
        inner()
    finally:
        state_tap.process_tap.close()
    assert {event.flow_name for event in told.events} == {"decorated"}


def test_a_failure_of_the_tap_is_logged_once_and_fails_no_task(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: Told
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no publisher")

    monkeypatch.setattr(Publisher, "publish", fail)
    monkeypatch.setattr(state_tap.process_tap, "_failed", False)
    with caplog.at_level(logging.ERROR, "zfast.events"), zfast.broadcast():
        assert inner() == 1
    assert len([r for r in caplog.records if "was not broadcast" in r.message]) == 1


def test_this_prefect_can_be_tapped() -> None:
    """Fails loudly when a new Prefect is another inside: see ``internals.tap_states``."""
    script = (
        "from zfast.prefect import internals; "
        "assert internals.tap_states(lambda *_: None, lambda *_: None, lambda *_: None)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_another_prefect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = prefect.task_engine.emit_task_run_state_change_event  # type: ignore[attr-defined]
    monkeypatch.setattr(prefect, "__version__", "3.9.0")
    assert not internals.tap_states(lambda *_: None, lambda *_: None, lambda *_: None)
    assert prefect.task_engine.emit_task_run_state_change_event is emit  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options", [{"kinds": ["worker"]}, {"flows": "etl"}, {"endpoint": "tcp://1.2.3.4:5"}]
)
def test_bad_options_are_refused(options: dict[str, Any], told: Told) -> None:
    with pytest.raises(ConfigError), zfast.broadcast(**options):
        pass


@pytest.mark.parametrize("setting", ["perhaps", '{"flow": ["etl"]}', '{"kinds": ["worker"]}'])
def test_a_bad_setting_says_so(setting: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import zfast.prefect"],
        env={**os.environ, "ZFAST_BROADCAST": setting},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "ConfigError" in done.stderr


@pytest.mark.parametrize("by", ["import", "plugin"])
def test_the_setting_broadcasts_without_touching_the_flow(
    by: str, prefect_api: str, told: Told, tmp_path: Path
) -> None:
    script = tmp_path / "plain_flow.py"
    script.write_text(
        ("import zfast.prefect\n" if by == "import" else "") + "from prefect import flow\n"
        "@flow\ndef plain(): return 1\n"
        "if __name__ == '__main__': plain()\n"
    )
    subprocess.run(
        [sys.executable, str(script)],
        env={
            **os.environ,
            "PREFECT_API_URL": prefect_api,
            "PREFECT_PLUGINS_ENABLED": str(by == "plugin"),
            "ZFAST_BROADCAST": '{"flows": ["plain"]}',
        },
        check=True,
        timeout=60,
    )
    assert [(e.flow_name, e.state_name) for e in told.events] == [
        ("plain", "Pending"), ("plain", "Running"), ("plain", "Completed")
    ]  # fmt: skip


EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_recipe_that_reacts_to_a_failure(prefect_api: str, told: Told) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "react_to_failure.py")],
        env={**os.environ, "PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "CRITICAL"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "is Failed" in done.stdout
    assert "part 3 is bad" in done.stdout


@pytest.mark.parametrize(("gated", "status"), [("inner", 0), ("failing", 1)])
def test_the_recipe_that_gates_a_deployment(
    gated: str, status: int, prefect_api: str, told: Told
) -> None:
    gate = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "gate_deployment.py"), gated, "40"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert gate.stdout is not None
    gate.stdout.readline()  # it waits
    with zfast.broadcast():
        {"inner": inner, "failing": failing}[gated](return_state=True)
        gate.communicate(timeout=60)
    assert gate.returncode == status
