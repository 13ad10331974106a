"""Transactions, which do not reach the task runs that are submitted in them: that is said."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.transactions import atransaction, transaction

from test_task_runner import identity
from zfast import ZfastTaskRunner
from zfast.errors import ConfigError

pytestmark = pytest.mark.usefixtures("prefect_api")


@task
def write(path: Path) -> str:
    path.write_text("half done")
    return "written"


@task
def announce() -> str:
    return "done"


@write.on_rollback
def remove(txn: Any) -> None: ...


@announce.on_commit
def tell(txn: Any) -> None: ...


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "transaction" in r.getMessage()]


def test_a_task_with_hooks_is_refused_in_a_transaction(tmp_path):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        path = tmp_path / "file"
        with transaction():
            with pytest.raises(ConfigError, match="'write' has hooks") as caught:
                runner.submit(write, {"path": path})
            with pytest.raises(ConfigError, match="'announce' has hooks"):
                runner.submit(announce, {})
            with pytest.raises(ConfigError):
                runner.map(write, {"path": [path]})
        assert "call the task" in str(caught.value)
        assert not path.exists()
        assert runner.submit(write, {"path": path}).result() == "written"


def test_a_task_without_hooks_is_warned_of_once_a_transaction(warnings):
    with ZfastTaskRunner(max_workers=1, spares=0) as runner:
        assert runner.submit(identity, {"value": 1}).result() == 1
        assert not warnings()
        for n in (1, 2):
            with transaction():
                assert runner.map(identity, {"value": range(3)}).result() == [0, 1, 2]
            assert len(warnings()) == n
    assert "'identity' is submitted in a transaction, which does not reach" in warnings()[0]


def test_a_transaction_of_an_async_flow_is_one_too():
    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    async def body() -> None:
        async with atransaction():
            announce.submit()

    with pytest.raises(ConfigError, match="'announce' has hooks"):
        asyncio.run(body())


def test_what_a_task_submits_is_not_refused_for_the_tasks_own_transaction(warnings):
    @task
    def outer(value: Any) -> Any:
        return [identity.submit(value).result(), announce.submit().result()]

    @task
    def outermost(value: Any) -> Any:
        return outer(value)

    @task
    def careful() -> None:
        with transaction():
            announce.submit()

    @flow(task_runner=ZfastTaskRunner(max_workers=1, spares=0))
    def body() -> Any:
        # In a worker, and in the flow's own process.
        submitted, called = outermost.submit(1).result(), outermost(2)
        with pytest.raises(ConfigError, match="'announce' has hooks"):
            careful.submit().result()
        return submitted, called

    assert body() == ([1, "done"], [2, "done"])
    (warned,) = warnings()
    assert "'announce' is submitted in a task, whose transaction does not reach" in warned
