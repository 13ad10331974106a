"""A task run on its way from ``submit`` to a hub, and its end on the way back."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Crashed

from zfast.codec import encode
from zfast.errors import WorkerError
from zfast.prefect.future import ZfastFuture
from zfast.prefect.reporting import Reporter
from zfast.runner.hub import Hub
from zfast.runner.job import Blob, Job, JobCancelledError, Outcome
from zfast.sharing.handover import Handover, Parcel

if TYPE_CHECKING:
    from prefect.tasks import Task


class Submission:
    """Goes to the hub when its upstream futures are done, and ends its own.

    Args:
        completions: Where futures end: not on the hub's thread, which a callback of the user's, or
            the decoding of a large result, would hold up.
        call: The encoded ``Call``, in which futures are indices of ``upstream``.
        upstream: What it waits for.

    Threads: any.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        completions: concurrent.futures.Executor,
        reporter: Reporter,
        future: ZfastFuture,
        task: Task[Any, Any],
        code: Blob,
        context: Blob,
        call: Parcel,
        upstream: list[PrefectFuture[Any]],
    ) -> None:
        self._hub = hub
        self._completions = completions
        self._reporter = reporter
        self._future = future
        self._task = task
        self._code = code
        self._context = context
        self._call = call
        self._upstream = upstream
        self._waiting = len(upstream)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Go to the hub, now or when the last upstream future is done."""
        if not self._upstream:
            self._submit()
        for future in self._upstream:
            future.add_done_callback(self._upstream_done)

    def _upstream_done(self, _: PrefectFuture[Any]) -> None:
        with self._lock:
            self._waiting -= 1
            if self._waiting:
                return
        self._submit()

    def _submit(self) -> None:
        try:
            handover = self._hub.handover
            parcels = [self._call, *(_state_parcel(f, handover) for f in self._upstream)]
        except Exception as error:
            self._future.settle(crashed(f"An upstream result cannot be sent on: {error}", error))
            return
        job = Job(
            self._future.task_run_id.bytes,
            self._code,
            self._context,
            parcels,
            self._done,
            on_replay=self._replayed,
            client=self._context.digest,
        )
        self._upstream = []
        self._hub.submit(job)

    def _replayed(self, attempt: int, cause: str) -> None:
        self._reporter.report_replay(self._future.task_run_id, attempt, cause)

    def _done(self, outcome: Outcome) -> None:
        try:
            self._completions.submit(self._complete, outcome)
        except RuntimeError:  # the runner was left meanwhile
            self._complete(outcome)

    def _complete(self, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, JobCancelledError):
                self._future.settle(Cancelled(message=str(outcome)))
            elif isinstance(outcome, WorkerError):
                # The detail, a remote traceback, stays with the exception.
                message = f"{outcome.message} – {outcome.hint}" if outcome.hint else outcome.message
                state = crashed(message, outcome)
                self._reporter.report_crash(self._future.task_run_id, state, self._task)
                self._future.settle(state)
            else:
                self._future.settle_parcel(outcome[0], self._hub.handover)
        except Exception as error:
            self._future.settle(crashed(f"The result was lost: {error}", error))


def crashed(message: str, error: BaseException) -> State[Any]:
    """The State of a task run that no engine brought to its end."""
    return Crashed(message=message, data=error)


def _state_parcel(future: PrefectFuture[Any], handover: Handover) -> Parcel:
    if isinstance(future, ZfastFuture):
        parcel = future.parcel_for(handover)
        if parcel is not None:
            return parcel
    future.wait()
    return handover.snapshot(encode(future.state))
