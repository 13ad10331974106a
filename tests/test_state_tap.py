"""Real flows whose states are broadcast: what a subscriber is told, and what it costs the flow."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import prefect
import pytest
from prefect import flow, task
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed

import zfast
from soak_states import Told, assert_api_agrees, inner, run
from zfast.errors import ConfigError
from zfast.events.event import StateEvent
from zfast.events.publisher import Publisher
from zfast.prefect import internals, state_tap


@task
async def works_async(number: int) -> int:
    return number


@flow
async def eventful_async() -> int:
    return await works_async(1)


@flow
def failing() -> None:
    raise RuntimeError("no flow")


@pytest.fixture
def told(short_folder: Path, monkeypatch: Any) -> Iterator[Told]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    told = Told()
    yield told
    told.end()


@pytest.mark.parametrize(
    ("runner", "n_killed"),
    [
        ("thread", 0),
        pytest.param("process", 0, marks=pytest.mark.long),
        ("zfast", 1),
    ],
)
def test_each_run_has_the_states_that_the_api_has(
    runner: str, n_killed: int, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")  # set by the run
    states = run(runner, 14, n_killed)
    told = {(run[2], name) for run, states_ in states.items() for name, _ in states_}
    assert told >= {
        ("works", "Completed"), ("works_later", "Retrying"), ("fails", "Failed"),
        ("cached", "Cached"), ("crashes", "Crashed"), ("eventful", "Running"),
        ("eventful", "Pending"), ("eventful", "Completed"), ("inner", "Completed"),
    }  # fmt: skip
    if n_killed:
        assert told >= {("dies_once", "Completed"), ("dies_always", "Crashed")}


def test_async_flows_and_flows_that_fail(prefect_api: str, told: Told) -> None:
    import asyncio

    with zfast.broadcast():
        assert asyncio.run(eventful_async()) == 1
        failing(return_state=True)
    assert told.names() >= {
        ("works_async", "Completed"), ("eventful-async", "Completed"), ("failing", "Failed")
    }  # fmt: skip
    assert_api_agrees(told.states())


@task
def makes(nbytes: int) -> Any:
    return np.ones(nbytes, np.uint8)


@task
def sums(array: Any) -> int:
    time.sleep(1.2)  # workers tell how they fare once a second
    return int(array.sum())


@flow(task_runner=zfast.ZfastTaskRunner(max_workers=2))
def hands_over(nbytes: int) -> int:
    return sums.submit(makes.submit(nbytes)).result()


def test_hand_overs_and_workers_are_told(prefect_api: str, told: Told) -> None:
    nbytes = 8 << 20
    workers = Told(kinds=["worker"])
    try:
        with zfast.broadcast():
            assert hands_over(nbytes) == nbytes
    finally:
        workers.end()
    fared = workers.events
    (made,) = {event.run_id for event in told.events if event.name == "makes"}
    (given,) = [e.inputs for e in told.events if e.name == "sums" and e.state_name == "Running"]
    assert [each.run_id for each in given] == [made]
    shared = given[0].shared_nbytes
    # Where memory cannot be shared, it travels.
    assert shared == nbytes or given[0].copied_nbytes >= nbytes
    assert {event.flow_name for event in fared} == {"hands-over"}
    assert {event.state_name for event in fared} >= {"Driver", "Gone"}
    assert any(event.worker == f"{socket.gethostname()}:{os.getpid()}" for event in fared)
    assert any(event.memory_nbytes > 1 << 20 for event in fared)
    assert not shared or any(event.arena_nbytes >= nbytes for event in fared)


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


def test_a_forked_child_broadcasts_on_request(told: Told) -> None:
    tap = state_tap.process_tap
    state, flow_run = Completed(), FlowRun(flow_id=uuid4(), name="forked")
    with zfast.subscribe() as events, zfast.broadcast():
        parents = [*tap._publishers.values()]
        tap._failed = True
        pid = os.fork()
        if pid == 0:
            try:
                tap.on_flow_state(eventful_async, flow_run, state)  # nobody has asked for it
                with zfast.broadcast():
                    tap.on_flow_state(eventful_async, flow_run, state)
                os._exit(0 if not tap._failed and tap._parents == parents else 1)
            except BaseException:
                os._exit(2)
        event = events.recv(20)
        while not isinstance(event, StateEvent):
            event = events.recv(20)
        assert os.waitpid(pid, 0)[1] == 0
        tap._failed = False
        assert event.run_id == str(flow_run.id)
        assert event.worker == f"{socket.gethostname()}:{pid}"
        # The parent's go on.
        tap.on_flow_state(eventful_async, flow_run, Completed())
        event = events.recv(20)
        assert isinstance(event, StateEvent)
        assert event.worker == f"{socket.gethostname()}:{os.getpid()}"


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
    "options", [{"kinds": ["gizmo"]}, {"flows": "etl"}, {"endpoint": "tcp://1.2.3.4:5"}]
)
def test_bad_options_are_refused(options: dict[str, Any], told: Told) -> None:
    with pytest.raises(ConfigError), zfast.broadcast(**options):
        pass


@pytest.mark.parametrize("setting", ["perhaps", '{"flow": ["etl"]}', '{"kinds": ["gizmo"]}'])
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
