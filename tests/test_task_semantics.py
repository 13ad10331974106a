"""What Prefect promises of any task runner, on zfast's workers; most tests share one runner."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, get_run_logger, task
from prefect.assets import materialize
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import Pause
from prefect.futures import as_completed
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_TASKS_RUNNER_PROCESS_POOL_MAX_WORKERS,
    get_current_settings,
    temporary_settings,
)
from prefect.transactions import transaction
from prefect.utilities.annotations import allow_failure, opaque

from test_task_runner import eventually, fail, identity, wait_for_file, worker_pid
from zfast import ZfastTaskRunner
from zfast.prefect.runner_settings import make_policy

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def runner(prefect_api: str) -> Iterator[ZfastTaskRunner]:
    with ZfastTaskRunner(max_workers=2, spares=0) as runner:
        yield runner


# ---- submit and futures -------------------------------------------------------------------


def test_submit_waits_for_no_upstream_task(runner, tmp_path):
    held = runner.submit(wait_for_file, {"path": tmp_path / "go"})
    by_value = runner.submit(identity, {"value": held})
    by_order = runner.submit(identity, {"value": 2}, wait_for=[held])
    assert not by_value.wrapped_future.done()
    (tmp_path / "go").touch()
    assert (by_value.result(), by_order.result()) == ("go", 2)
    assert held.task_run_id.version == 7


def test_as_completed_gives_who_ends_first(runner, tmp_path):
    late = runner.submit(wait_for_file, {"path": tmp_path / "go"})
    soon = runner.submit(identity, {"value": 1})
    order = as_completed([late, soon])
    first = next(order)
    (tmp_path / "go").touch()
    assert [first, *order] == [soon, late]


def test_a_result_may_be_waited_for_with_a_time_limit(runner, tmp_path):
    future = runner.submit(wait_for_file, {"path": tmp_path / "go"})
    future.wait(timeout=0.05)
    with pytest.raises(TimeoutError, match="did not complete within"):
        future.result(timeout=0.05)
    (tmp_path / "go").touch()
    assert future.result(timeout=60) == "go"


def test_an_opaque_future_is_resolved(runner):
    value = runner.submit(identity, {"value": {"a": [1]}})
    assert runner.submit(identity, {"value": opaque(value)}).result() == {"a": [1]}


def test_a_failed_task_that_was_to_be_waited_for_keeps_the_next_from_running(runner):
    failed = runner.submit(fail, {"message": "nope"})
    held = runner.submit(identity, {"value": 1}, wait_for=[failed])
    held.wait()
    assert held.state.name == "NotReady"


@pytest.mark.parametrize(
    "kind", ["future", "State", "dictionary", "values", "iterator", "deque", "map"]
)
def test_what_is_waited_for_may_come_in_any_form(runner, kind):
    failed = runner.submit(fail, {"message": "nope"})
    if kind == "State":
        failed.wait()
    wait_for = {
        "future": failed,
        "State": failed.state,
        "dictionary": {"a": [failed]},
        "values": {"a": failed}.values(),
        "iterator": iter([failed]),
        "deque": deque([failed]),
        "map": {"a": failed},
    }[kind]
    if kind == "map":
        (held,) = runner.map(identity, {"value": [1]}, wait_for=wait_for)
    else:
        held = runner.submit(identity, {"value": 1}, wait_for=wait_for)
    held.wait()
    assert held.state.name == "NotReady"


def test_what_may_fail_may_be_all_that_is_waited_for(runner):
    failed = runner.submit(fail, {"message": "nope"})
    assert runner.submit(identity, {"value": 1}, wait_for=allow_failure(failed)).result() == 1


# ---- kinds of tasks -----------------------------------------------------------------------


def test_what_a_generator_yields_is_its_result(runner):
    @task
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    @task
    async def count_async(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    counted = [runner.submit(kind, {"n": 3}) for kind in (count, count_async)]
    assert [future.result() for future in counted] == [[0, 1, 2]] * 2


def test_asynchronous_tasks_of_a_worker_share_a_loop_and_leave_nothing_running(runner, tmp_path):
    @task
    async def look(number: int) -> tuple[int, str]:
        async def go_on() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                (tmp_path / str(number)).touch()

        rest = asyncio.create_task(go_on())
        await asyncio.sleep(0)
        assert not rest.done()
        loop: Any = asyncio.get_running_loop()
        loop.label = getattr(loop, "label", None) or uuid4().hex
        return os.getpid(), loop.label

    seen = set(runner.map(look, {"number": range(6)}).result())
    assert len(seen) == len({pid for pid, _ in seen})
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_is_interrupted_when_its_time_is_over(runner, kind):
    @task(timeout_seconds=0.2)
    def sleep() -> None:
        time.sleep(600)

    @task(timeout_seconds=0.2)
    async def sleep_async() -> None:
        await asyncio.sleep(600)

    future = runner.submit(sleep if kind == "sync" else sleep_async, {})
    future.wait()
    assert future.state.name == "TimedOut"


def test_an_interrupt_in_a_task_crashes_it_and_spares_its_worker(runner):
    @task
    def interrupt(kind: type[BaseException]) -> None:
        raise kind

    pids = set(runner.map(worker_pid, {"_": range(8)}).result())
    for kind in (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        future = runner.submit(interrupt, {"kind": kind})
        future.wait()
        assert future.state.is_crashed(), future.state
    pids |= set(runner.map(worker_pid, {"_": range(8)}).result())
    assert len(pids) <= 2


def test_a_rollback_happens_where_the_transaction_is(runner, tmp_path):
    @task
    def write(path: Path) -> None:
        path.write_text("half done")

    @write.on_rollback
    def remove(_: Any) -> None:
        (tmp_path / "file").rename(tmp_path / "taken back")

    @task
    def careful(folder: Path) -> None:
        with transaction():
            write(folder / "file")
            raise ValueError("no")

    runner.submit(careful, {"folder": tmp_path}).wait()
    assert [path.name for path in tmp_path.iterdir()] == ["taken back"]


@pytest.mark.long
def test_a_limit_of_a_tag_holds_across_workers(runner, tmp_path):
    tag = f"one-{uuid4().hex}"
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit(tag=tag, concurrency_limit=1)

    @task(tags=[tag])
    def alone(_: int) -> None:
        os.close(os.open(tmp_path / "here", os.O_CREAT | os.O_EXCL))
        time.sleep(0.05)
        (tmp_path / "here").unlink()

    runner.map(alone, {"_": range(3)}).result()


# ---- where tasks run ----------------------------------------------------------------------


def test_a_task_has_the_settings_the_folder_and_the_search_path_of_its_flow(runner):
    @task
    def look() -> tuple[float, str, list[str]]:
        return get_current_settings().api.request_timeout, os.getcwd(), sys.path

    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 47.0}):
        timeout, folder, path = runner.submit(look, {}).result()
    assert (timeout, folder) == (47.0, os.getcwd())
    assert set(filter(None, sys.path)) <= set(path)
    # Settings may change between two submits.
    assert runner.submit(look, {}).result()[0] != 47.0


def test_the_number_of_workers_is_prefects_setting_or_that_of_the_processors():
    runner = ZfastTaskRunner()
    assert make_policy(runner._settings).max_workers == os.cpu_count()
    with temporary_settings({PREFECT_TASKS_RUNNER_PROCESS_POOL_MAX_WORKERS: 3}):
        assert make_policy(runner._settings).max_workers == 3


def test_code_that_does_not_change_is_sent_once_to_a_worker(runner, tmp_path):
    journal = tmp_path / "journal"

    class Weight:
        """Notes each time that it arrives."""

        def __setstate__(self, state: dict[str, Any]) -> None:
            with journal.open("a") as file:
                file.write(f"{os.getpid()}\n")

        def __getstate__(self) -> dict[str, Any]:
            return {"weight": bytes(1 << 20)}

    weight = Weight()

    @task
    def use(_: int) -> bool:
        return weight is not None

    assert all(runner.map(use, {"_": range(12)}).result())
    arrived = journal.read_text().split()
    assert len(arrived) == len(set(arrived))


@pytest.mark.long
def test_classes_of_the_script_go_and_come_back(run_python):
    printed = run_python(
        """
from dataclasses import dataclass
from prefect import flow, task
from zfast import ZfastTaskRunner
from zfast.prefect.runner_settings import make_policy

@dataclass
class Box:
    content: int

@task
def more(box: Box) -> Box:
    return Box(box.content + 1)

@flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
def boxes():
    box = more.submit(more.submit(Box(0))).result()
    print(isinstance(box, Box), box.content)

boxes()
"""
    )
    assert printed.split() == ["True", "2"]


def test_maps_in_maps_and_flows_in_tasks_wait_for_nothing_but_themselves():
    @task
    def leaves(depth: int) -> int:
        return 1 if depth == 0 else sum(leaves.map([depth - 1] * 2).result())

    @flow
    def inner(value: int) -> int:
        return identity.submit(value).result()

    @task
    def call_flow(value: int) -> int:
        return inner(value)

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def outer() -> tuple[list[int], int]:
        return leaves.map([2]).result(), call_flow.submit(5).result()

    assert outer() == ([4], 5)


def test_what_a_task_has_submitted_and_not_waited_for_may_finish(tmp_path, monkeypatch):
    # Not only for as long as a worker that was told to stop is given.
    monkeypatch.setattr("zfast.runner.worker_handle.STOP_GRACE_S", 0.2)
    monkeypatch.setattr("zfast.runner.pool.STOP_GRACE_S", 0.2)

    @task
    def inner() -> None:
        (tmp_path / "begun").touch()
        wait_for_file.fn(tmp_path / "go")
        (tmp_path / "done").touch()

    @task
    def outer() -> None:
        inner.submit()
        eventually((tmp_path / "begun").exists, 30)

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def leaves_one_behind() -> None:
        outer.submit().result()
        threading.Timer(1, (tmp_path / "go").touch).start()

    leaves_one_behind()
    assert (tmp_path / "done").exists()


def test_a_suspended_flow_lets_what_runs_finish(tmp_path):
    futures = []

    def suspended():
        with ZfastTaskRunner(max_workers=1, spares=0) as runner:
            runner.submit(identity, {"value": 0}).wait()
            futures.append(runner.submit(wait_for_file, {"path": tmp_path / "go"}))
            futures.append(runner.submit(identity, {"value": 1}))
            while not (tmp_path / "go.begun").exists():
                time.sleep(0.01)
            threading.Timer(0.3, (tmp_path / "go").touch).start()
            raise Pause

    with pytest.raises(Pause):
        suspended()
    assert futures[0].result() == "go"
    assert futures[1].state.name == "Cancelled"


# ---- what the API gets --------------------------------------------------------------------


def events_of(flow_run_id, prefix):
    """The events of a kind that name a flow run, as the API has them."""
    wanted = {
        "event": {"prefix": [prefix]},
        "related": {"id": [f"prefect.flow-run.{flow_run_id}"]},
    }
    with get_client(sync_client=True) as client:
        found = client._client.post("/events/filter", json={"filter": wanted})
    return found.json()["events"]


def test_logs_events_and_assets_arrive_once_and_in_order():
    raw, clean = "s3://data/raw", "s3://data/clean"

    @materialize(raw)
    def extract() -> int:
        return 1

    @materialize(clean)
    def refine(value: int) -> int:
        return value + 1

    @task(log_prints=True)
    def talk() -> None:
        for number in range(20):
            get_run_logger().info("line %d", number)
        print("line 20")
        emit_event("zfast.test.said", resource={"prefect.resource.id": "zfast.test.talk"})

    @flow(task_runner=ZfastTaskRunner(max_workers=2, spares=0))
    def body() -> Any:
        refine.submit(extract.submit()).wait()
        talk.submit().wait()
        return FlowRunContext.get().flow_run.id

    run_id = body()

    (said,) = eventually(lambda: events_of(run_id, "zfast.test."))
    roles = {related["prefect.resource.role"] for related in said["related"]}
    assert {"task-run", "flow-run"} <= roles

    def assets():
        found = events_of(run_id, "prefect.asset.")
        return found if len(found) >= 3 else None

    assert sorted(
        (e["event"].split(".")[2], e["resource"]["prefect.resource.id"])
        for e in (eventually(assets))
    ) == [("materialization", clean), ("materialization", raw), ("referenced", raw)]

    def lines():
        with get_client(sync_client=True) as client:
            logs = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
            )
        logs.sort(key=lambda log: log.timestamp)
        said = [log.message for log in logs if log.message.startswith("line ")]
        return said if len(said) >= 21 else None

    assert eventually(lines) == [f"line {number}" for number in range(21)]
