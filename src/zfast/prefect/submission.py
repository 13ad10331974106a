"""A task run on its way from ``submit`` to a hub, and its end on the way back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectFuture
from prefect.states import Cancelled

from zfast.codec import encode
from zfast.errors import WorkerError
from zfast.prefect.crashes import crashed, crashed_by
from zfast.prefect.future import ZfastFuture
from zfast.prefect.making import Input, Making
from zfast.prefect.workshop import Workshop
from zfast.runner.job import JobCancelledError
from zfast.sharing.handover import Handover, Parcel

if TYPE_CHECKING:
    from prefect.tasks import Task


class Submission:
    """Goes to the hub when its upstream futures are done, and ends its own.

    Args:
        making: Of the task run; futures in its call are indices of ``upstream``.
        upstream: What it waits for.

    Threads: any.
    """

    def __init__(
        self,
        workshop: Workshop,
        future: ZfastFuture,
        task: Task[Any, Any],
        making: Making,
        upstream: list[PrefectFuture[Any]],
    ) -> None:
        self._workshop = workshop
        self._future = future
        self._task = task
        self._making = making
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
            given = [_hand_on(future, self._workshop.hub.handover) for future in self._upstream]
        except Exception as error:
            message = f"An upstream result cannot be sent on: {error}"
            crash_unsent(self._workshop, self._future, self._task, message, error)
            return
        self._upstream = []
        self._making.begin(given, self._done)

    def _done(self, made: Parcel | WorkerError) -> None:
        if isinstance(made, WorkerError):
            then: Callable[[], None] | None = partial(self._fail, made)
        else:
            then = self._settle(made)
        if then is None:
            return
        # Not in this step: a callback of the user's may wait for another one.
        try:
            self._workshop.completions.submit(then)
        except RuntimeError:  # the runner was left meanwhile
            _run_on_a_thread(then)

    def _settle(self, made: Parcel) -> Callable[[], None] | None:
        making = self._making if made.is_remote else None
        try:
            return self._future.settle_parcel(made, self._workshop.hub.handover, making)
        except Exception as error:
            return partial(self._lose, error)

    def _fail(self, failure: WorkerError) -> None:
        try:
            if isinstance(failure, JobCancelledError):
                details = self._future.details
                self._future.settle(Cancelled(message=str(failure), state_details=details))
                return
            state = crashed_by(failure, self._future.details)
            self._workshop.reporter.report_crash(self._future.task_run_id, state, self._task)
            self._future.settle(state)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        message = f"The result was lost: {error}"
        self._future.settle(crashed(message, error, self._future.details))


def _run_on_a_thread(step: Callable[[], None]) -> None:
    thread = threading.Thread(target=step, name="zfast-completion", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there can be no more threads
        step()


def crash_unsent(
    workshop: Workshop, future: ZfastFuture, task: Task[Any, Any], message: str, error: Exception
) -> None:
    """End as Crashed a task run that no worker was given, and so none tells the API of."""
    state = crashed(message, error, future.details)
    workshop.reporter.report_unsent(future.task_run_id, state, task)
    future.settle(state)


def _hand_on(future: PrefectFuture[Any], handover: Handover) -> Input:
    if isinstance(future, ZfastFuture):
        making = future.making  # first: without one, the parcel is here to stay
        parcel = future.parcel_for(handover)
        if parcel is not None:
            return parcel, making or parcel
    future.wait()
    parcel = handover.snapshot(encode(future.state))
    return parcel, parcel
