"""What Prefect's API is told: by workers for their task runs, by the driver for those that died.

A worker sends its task runs' events to the API itself; the driver need not see them. Its logs go
through the driver, so that the last words before a death arrive.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker, set_api_log_sink
from prefect.states import AwaitingRetry
from prefect.types._datetime import now
from prefect.utilities.engine import emit_task_run_state_change_event

from zfast.prefect import internals

if TYPE_CHECKING:
    from prefect.tasks import Task

logger = logging.getLogger("zfast.prefect")

LOG = "log"
#: The API learns of a task run from events, a moment after they were sent: wait for it so long.
FIND_TASK_RUN_S = 3.0
#: A task run that begins again waits so long for what the API knows of it.
RESUME_S = 0.3
#: A worker waits so long at most for its events to be sent: before it tells how a task run ended.
FLUSH_S = 10.0
#: So many task runs are reported on at one time.
MAX_REPORTS = 8
#: Leaving the runner waits so long for reports under way.
CLOSE_S = 10.0


def forward_logs(notify: Callable[[str, bytes], None]) -> None:
    """In a worker: turn this process's API logs into notes to the hub."""
    set_api_log_sink(lambda log: notify(LOG, msgspec.json.encode(log)))


def flush_events() -> None:
    """In a worker: wait until every event emitted so far was sent to the API.

    Not for ever: where Prefect cannot send them, it has said so in the log.
    """
    if not internals.wait_for_events_sent(FLUSH_S):
        logger.debug("not all events were sent to the API")


def find_begun_run(task_run_id: UUID, n_begun: int) -> TaskRun | None:
    """In a worker: a task run that another worker had begun when it died, as the API knows it.

    Prefect's engine goes on from it, so that it keeps its name, its inputs and its count of runs.

    Args:
        n_begun: How often it was begun, of which the API may know less.

    Returns:
        None if the API has not heard of it; then the engine begins anew under the same id.
    """
    try:
        task_run = _find_task_run(task_run_id, RESUME_S)
    except Exception:
        logger.warning("task run %s begins anew: the API does not answer", task_run_id)
        return None
    if task_run is None or task_run.state is None:
        return None
    task_run.run_count = max(task_run.run_count, n_begun)
    task_run.end_time = None
    return task_run


class Reporter:
    """In the driver: sends workers' logs on, and reports what became of those that died.

    It works in copies of the context it is made in, where Prefect finds the flow run's settings.
    Threads: any.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_REPORTS, "zfast-report")
        self._lock = threading.Lock()
        self._reports: set[concurrent.futures.Future[None]] = set()

    def forward(self, _: bytes, topic: str, data: memoryview) -> None:
        """Forward a worker's note."""
        if topic == LOG:
            self._context.run(_send_log, data)
        else:
            logger.warning("a worker sent a note on the unknown topic %r", topic)

    def report_crash(self, task_run_id: UUID, state: State[Any], task: Task[Any, Any]) -> None:
        """Tell the API that a task run crashed, whose own engine did not live to say so."""
        self._report(_report_crash, task_run_id, state, task)

    def report_replay(self, task_run_id: UUID, attempt: int, cause: str) -> None:
        """Tell the API that a task run whose worker has died waits to be run again."""
        state: State[Any] = AwaitingRetry(
            scheduled_time=now("UTC"),
            message=f"Its worker died: {cause}. Attempt {attempt} will run on another worker.",
        )
        self._report(_report_replay, task_run_id, state)

    def _report(self, report: Callable[..., None], task_run_id: UUID, *arguments: object) -> None:
        try:
            future = self._pool.submit(self._context.copy().run, report, task_run_id, *arguments)
        except RuntimeError:  # closed, or the interpreter is on its way out
            logger.debug("no report on task run %s", task_run_id, exc_info=True)
            return
        with self._lock:
            self._reports.add(future)
        future.add_done_callback(self._forget)

    def _forget(self, future: concurrent.futures.Future[None]) -> None:
        with self._lock:
            self._reports.discard(future)

    def close(self) -> None:
        """Wait for reports under way."""
        with self._lock:
            reports = list(self._reports)
        _, late = concurrent.futures.wait(reports, CLOSE_S)
        if late:
            logger.warning("the API was not told of the end of %d task runs in time", len(late))
        self._pool.shutdown(wait=False, cancel_futures=True)


def _send_log(data: memoryview) -> None:
    APILogWorker.instance().send(msgspec.json.decode(data))


def _report_crash(task_run_id: UUID, state: State[Any], task: Task[Any, Any]) -> None:
    try:
        task_run = _find_task_run(task_run_id, FIND_TASK_RUN_S) or _describe_task_run(
            task_run_id, task
        )
        emit_task_run_state_change_event(task_run, task_run.state, state)
    except Exception:
        logger.exception("the API was not told that task run %s crashed", task_run_id)


def _report_replay(task_run_id: UUID, state: State[Any]) -> None:
    try:
        # Its next attempt may have ended by now: the API orders states by their time.
        task_run = _find_task_run(task_run_id, FIND_TASK_RUN_S)
        if task_run is not None:
            emit_task_run_state_change_event(task_run, task_run.state, state)
    except Exception:
        logger.exception("the API was not told that task run %s runs again", task_run_id)


def _find_task_run(task_run_id: UUID, timeout_s: float) -> TaskRun | None:
    deadline = time.monotonic() + timeout_s
    with get_client(sync_client=True) as client:
        while True:
            try:
                return client.read_task_run(task_run_id)
            except ObjectNotFound:
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.05)


def _describe_task_run(task_run_id: UUID, task: Task[Any, Any]) -> TaskRun:
    """A task run that died before its first word."""
    context = FlowRunContext.get()
    return TaskRun(
        id=task_run_id,
        name=f"{task.name}-{task_run_id.hex[-3:]}",
        flow_run_id=context.flow_run.id if context and context.flow_run else None,
        task_key=task.task_key,
        dynamic_key=str(task_run_id),
        tags=list(task.tags),
    )
