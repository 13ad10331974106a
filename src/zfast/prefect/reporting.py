"""What Prefect's API is told: by workers for their task runs, by the driver for those that died.

A worker sends its task runs' events to the API itself; the driver need not see them. Its logs go
through the driver, so that the last words before a death arrive.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import msgspec
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker, set_api_log_sink
from prefect.states import AwaitingRetry, Cancelled
from prefect.types._datetime import DateTime, now
from prefect.utilities.engine import emit_task_run_state_change_event

from zfast.prefect import internals
from zfast.prefect.crashes import active_flow_run_id
from zfast.prefect.internals import event_service, related_resources

if TYPE_CHECKING:
    from prefect.tasks import Task

logger = logging.getLogger("zfast.prefect")
_Found = TypeVar("_Found")

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
#: Which reports come first.
_END, _WAIT = 0, 1


def report_as_worker(notify: Callable[[str, bytes], None]) -> None:
    """In a worker, before its first event: turn API logs into notes to the hub, and have events
    go to the API at little cost.
    """
    set_api_log_sink(lambda log: notify(LOG, msgspec.json.encode(log)))
    event_service.take_events_on_the_loop()
    related_resources.remember_related_resources()


def flush_events() -> None:
    """In a worker: wait until every event emitted so far was sent to the API.

    Not for ever: where Prefect cannot send them, it has said so in the log.
    """
    if not event_service.wait_for_events_sent(FLUSH_S):
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
        with get_client(sync_client=True) as client:
            task_run = _find_task_run(client, task_run_id, RESUME_S)
    except Exception:
        logger.warning("task run %s begins anew: the API does not answer", task_run_id)
        return None
    if task_run is None or task_run.state is None:
        return None
    task_run.run_count = max(task_run.run_count, n_begun)
    task_run.end_time = None
    return task_run


class _ReportThread(threading.local):
    client: SyncPrefectClient | None = None


class Reporter:
    """In the driver: sends workers' logs on, and reports what became of those that died.

    It works in copies of the context it is made in, where Prefect finds the flow run's settings.
    What has ended is told before what waits: there may be no time for all of it when the flow
    ends. Threads: any.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        # Made by the first task run of many that submit others, it must not keep what that was
        # given, nor speak in its name.
        self._context.run(internals.leave_task_run)
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_REPORTS, "zfast-report")
        self._lock = threading.Lock()
        self._reports: set[concurrent.futures.Future[None]] = set()
        #: What to tell, by its rank and number; there is a future for each.
        self._waiting: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = (
            queue.PriorityQueue()
        )
        self._numbers = itertools.count()
        self._thread = _ReportThread()
        self._clients = contextlib.ExitStack()
        self._clients_lock = threading.Lock()

    def forward(self, _: bytes, topic: str, data: memoryview) -> None:
        """Forward a worker's note."""
        if topic == LOG:
            self._context.run(_send_log, data)
        else:
            logger.warning("a worker sent a note on the unknown topic %r", topic)

    def report_crash(self, task_run_id: UUID, state: State[Any], task: Task[Any, Any]) -> None:
        """Tell the API that a task run crashed, whose own engine did not live to say so."""
        self._report(_END, _report_crash, task_run_id, state, task)

    def report_unsent(self, task_run_id: UUID, state: State[Any], task: Task[Any, Any]) -> None:
        """Tell the API of a task run that crashed before a worker could have told of it."""
        self._report(_END, _report_unsent, task_run_id, state, task)

    def report_cancelled(self, task_run_id: UUID, cause: str) -> None:
        """Tell the API that a task run that was begun, and waits to be run again, is not."""
        state: State[Any] = Cancelled(message=f"It is not run again: {cause}")
        self._report(_END, _report_state, task_run_id, state)

    def report_no_replay(self, task_run_id: UUID, cause: str) -> None:
        """Tell the API that a task run that waits to be run again is what it was before."""
        message = f"Its result is gone, and it is not run again: {cause}"
        self._report(_END, _report_no_replay, task_run_id, message, now("UTC"))

    def report_replay(self, task_run_id: UUID, attempt: int, cause: str) -> None:
        """Tell the API that a task run waits to be run again, and why."""
        state: State[Any] = AwaitingRetry(
            scheduled_time=now("UTC"),
            message=f"{cause}. Attempt {attempt} will run on another worker.",
        )
        self._report(_WAIT, _report_state, task_run_id, state)

    def _report(
        self, rank: int, report: Callable[..., None], task_run_id: UUID, *arguments: object
    ) -> None:
        call = partial(self._try_report, report, task_run_id, *arguments)
        call = partial(self._context.copy().run, call)
        self._waiting.put((rank, next(self._numbers), call))
        try:
            future = self._pool.submit(self._report_next)
        except RuntimeError:  # closed, or the interpreter is on its way out
            logger.debug("no report on task run %s", task_run_id, exc_info=True)
            return
        with self._lock:
            self._reports.add(future)
        future.add_done_callback(self._forget)

    def _report_next(self) -> None:
        self._waiting.get_nowait()[-1]()

    def _try_report(
        self, report: Callable[..., None], task_run_id: UUID, *arguments: object
    ) -> None:
        try:
            report(self._client(), task_run_id, *arguments)
        except Exception:
            logger.exception("the API was not told what became of task run %s", task_run_id)

    def _client(self) -> SyncPrefectClient:
        """This thread's client: to make one takes longer than what it is used for."""
        if self._thread.client is None:
            with self._clients_lock:
                self._thread.client = self._clients.enter_context(get_client(sync_client=True))
        return self._thread.client

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
        if not late:  # else they are still in use
            self._clients.close()


def _send_log(data: memoryview) -> None:
    APILogWorker.instance().send(msgspec.json.decode(data))


def _report_crash(
    client: SyncPrefectClient, task_run_id: UUID, state: State[Any], task: Task[Any, Any]
) -> None:
    task_run = _find_task_run(client, task_run_id, FIND_TASK_RUN_S) or _describe_task_run(
        task_run_id, task
    )
    _tell(task_run, state)


def _report_unsent(
    _: SyncPrefectClient, task_run_id: UUID, state: State[Any], task: Task[Any, Any]
) -> None:
    _tell(_describe_task_run(task_run_id, task), state)


def _report_state(client: SyncPrefectClient, task_run_id: UUID, state: State[Any]) -> None:
    # Its next attempt may have ended by now: the API orders states by their time.
    task_run = _find_task_run(client, task_run_id, FIND_TASK_RUN_S)
    if task_run is not None:
        _tell(task_run, state)


def _report_no_replay(
    client: SyncPrefectClient, task_run_id: UUID, message: str, since: DateTime
) -> None:
    task_run = _find_task_run(client, task_run_id, FIND_TASK_RUN_S)
    end = _poll(lambda: _find_end(client, task_run_id), FIND_TASK_RUN_S)
    if task_run is not None and end is not None:
        again = State[Any](type=end.type, name=end.name, message=message, timestamp=since)
        emit_task_run_state_change_event(task_run, task_run.state, again)


def _tell(task_run: TaskRun, state: State[Any]) -> None:
    """Send a state, with the times that Prefect's engine would give its task run."""
    before = task_run.state
    if before is not None and before.is_running() and before.timestamp < state.timestamp:
        task_run.total_run_time += state.timestamp - before.timestamp
    if state.is_final() and task_run.start_time is not None:
        task_run.end_time = cast("DateTime", state.timestamp)
    emit_task_run_state_change_event(task_run, before, state)


def _find_end(client: SyncPrefectClient, task_run_id: UUID) -> State[Any] | None:
    ends = [state for state in client.read_task_run_states(task_run_id) if state.is_final()]
    return max(ends, key=lambda state: state.timestamp, default=None)


def _find_task_run(
    client: SyncPrefectClient, task_run_id: UUID, timeout_s: float
) -> TaskRun | None:
    def look() -> TaskRun | None:
        try:
            return client.read_task_run(task_run_id)
        except ObjectNotFound:
            return None

    return _poll(look, timeout_s)


def _poll(look: Callable[[], _Found | None], timeout_s: float) -> _Found | None:
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _describe_task_run(task_run_id: UUID, task: Task[Any, Any]) -> TaskRun:
    """A task run of which nothing was said."""
    return TaskRun(
        id=task_run_id,
        name=f"{task.name}-{task_run_id.hex[-3:]}",
        flow_run_id=active_flow_run_id(),
        task_key=task.task_key,
        dynamic_key=str(task_run_id),
        tags=list(task.tags),
    )
