"""Makings: how the results of task runs are made, so that those that are lost are made again.

A result that lies on another host is lost with it. What is remembered of it is how it was made:
code, context, call, and in place of each upstream result the same of that one. The results
themselves live as long as a future, or a task run that takes them; one that is gone when it is
needed again, because it was lost or because nobody kept it, is made again, what it needs first.

::

    begin ─▶ at work ── done ──▶ made ── gone, and asked for ──▶ waits for its inputs
              ▲   └── an input is lost ──────────────────────────▶ │
              └──────────────── all of them are there ─────────────┘
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from prefect.client.schemas.objects import StateDetails

from zfast.codec import encode
from zfast.errors import ResultLostError, WorkerError
from zfast.prefect.crashes import crashed_by
from zfast.prefect.workshop import Workshop
from zfast.runner.job import Blob, Job, JobCancelledError, Outcome
from zfast.sharing.handover import Parcel

if TYPE_CHECKING:
    from prefect.tasks import Task

logger = logging.getLogger("zfast.prefect")

#: So often what was lost of a task run's results is made again; then it stays lost.
MAX_REMAKES = 3

#: Told of a result, the final State of a task run, or of why there is none.
Waiter: TypeAlias = "Callable[[Parcel | WorkerError], object]"
#: What an upstream task run gave, and where to have it from should it be lost, if not itself.
Input: TypeAlias = "tuple[Parcel, Making | Parcel]"


class Making:
    """How one task run makes its result, the first time and again.

    Args:
        code, context, call: What a worker gets; futures in the call are indices of its inputs.

    Threads: ``begin`` before all else, ``ask`` any, the rest in steps of the workshop.
    """

    def __init__(
        self,
        workshop: Workshop,
        task: Task[Any, Any],
        task_run_id: UUID,
        code: Blob,
        context: Blob,
        call: Parcel,
    ) -> None:
        self._workshop = workshop
        self._task, self._task_run_id = task, task_run_id
        self._code, self._context = code, context
        #: None once it is not to be made again.
        self._call: Parcel | None = call
        self._upstream: list[Making | Parcel] = []
        #: What upstream gave, while the task run is at work or waits for the rest of it.
        self._inputs: list[Parcel | None] = []
        self._n_missing = 0
        self._failure: WorkerError | None = None
        self._waiters: list[Waiter] = []
        self._attempt = 1
        #: How workers died of what is at work.
        self._deaths: list[str] = []
        #: Why it is made again, until it goes to the hub and the API is told.
        self._cause: str | None = None
        self._was_made = False
        #: Whether the API was told that it is made again.
        self._was_recalled = False
        self._n_losses = 0
        self._result: Callable[[], Parcel | None] = lambda: None
        self._renew: Callable[[], Callable[[Parcel], None] | None] = lambda: None

    def begin(self, inputs: list[Input], waiter: Waiter) -> None:
        """Run it for the first time; ``waiter`` is told of the result."""
        self._inputs = [parcel for parcel, _ in inputs]
        self._upstream = [source for _, source in inputs]
        self._waiters = [waiter]
        self._submit()

    def keep_in(self, renew: Callable[[Parcel], None]) -> None:
        """Have a method called with the result whenever it was made again; held weakly."""
        self._renew = weakref.WeakMethod(renew)

    def ask(self, loss: ResultLostError, waiter: Waiter) -> None:
        """Tell ``waiter`` of the result, made again if it is gone; ``loss`` is why it is asked."""
        if self._workshop.is_here:
            self._workshop.call(partial(self._guarded, self._give, loss, waiter))
        else:
            waiter(loss)

    def forget(self) -> None:
        """Let go of what it would take to make it again: it is not any more."""
        self._call, self._upstream = None, []

    # ---- steps ----------------------------------------------------------------------------

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Do a step; should it fail, nobody waits for ever."""
        try:
            step(*arguments)
        except Exception as error:
            logger.exception("a step of task run %s failed", self._task_run_id)
            hint = "see the log for the cause"
            self._tell(WorkerError(f"the task run cannot go on: {error!r}", hint=hint))

    def _give(self, loss: ResultLostError, waiter: Waiter) -> None:
        self._waiters.append(waiter)
        if len(self._waiters) > 1:  # it is at work
            return
        result = self._result()
        if result is not None and not result.is_lost:
            self._tell(result)
            return
        if self._call is None:
            self._tell(loss)
            return
        if result is not None:  # else nobody kept it, which may be as often as it likes
            if self._n_losses == MAX_REMAKES:
                hint = f"what was lost was made again {MAX_REMAKES} times, and is not any more"
                self._tell(ResultLostError(loss.message, hint=hint))
                return
            self._n_losses += 1
        self._cause = f"Its result is gone: {loss.message}"
        self._inputs = [
            each if isinstance(each, Parcel) else each._result() for each in self._upstream
        ]
        self._gather(loss)

    def _gather(self, loss: ResultLostError) -> None:
        """Go to the hub, once everything that is gone of upstream was made again."""
        gone = [i for i, each in enumerate(self._inputs) if _is_gone(each)]
        self._n_missing, self._failure = len(gone), None
        if not gone:
            self._submit()
        for i in gone:
            upstream = self._upstream[i]
            if isinstance(upstream, Making):
                waiter = partial(self._guarded, self._take, i)
                self._workshop.do(partial(upstream._guarded, upstream._give, loss, waiter))
            else:
                self._take(i, loss)

    def _take(self, i: int, given: Parcel | WorkerError) -> None:
        if isinstance(given, Parcel):
            self._inputs[i] = given
        else:
            self._failure = given
        self._n_missing -= 1
        if not self._n_missing:
            if self._failure is None:
                self._submit()
            else:
                self._fail(self._failure)

    def _submit(self) -> None:
        assert self._call is not None
        if self._cause is not None:
            self._attempt += 1
            self._report_replay(self._cause)
            self._cause = None
        job = Job(
            self._task_run_id.bytes,
            self._code,
            self._context,
            [self._call, *(each for each in self._inputs if each is not None)],
            lambda outcome: self._workshop.do(partial(self._guarded, self._conclude, outcome)),
            on_replay=self._replayed,
            client=self._context.digest,
            first_attempt=self._attempt,
            deaths=self._deaths,
        )
        self._workshop.hub.submit(job)

    def _replayed(self, attempt: int, cause: str) -> None:
        self._attempt = attempt
        self._report_replay(f"Its worker died: {cause}")

    def _report_replay(self, cause: str) -> None:
        self._was_recalled = self._was_made
        self._workshop.reporter.report_replay(self._task_run_id, self._attempt, cause)

    def _conclude(self, outcome: Outcome) -> None:
        if not isinstance(outcome, WorkerError):
            self._made(outcome[0])
        elif isinstance(outcome, ResultLostError) and any(map(_is_gone, self._inputs)):
            self._gather(outcome)  # it had not begun
        else:
            self._fail(outcome)

    def _made(self, result: Parcel) -> None:
        self._was_made, self._was_recalled = True, False
        self._deaths = []
        if result.is_remote:
            self._result = weakref.ref(result)
            self._workshop.remember(self)
        else:  # it cannot be lost
            self._result = lambda: result
            self.forget()
        renew = self._renew()
        if renew is not None:
            renew(result)
        self._tell(result)

    def _fail(self, error: WorkerError) -> None:
        if not self._was_made:  # who waits for it tells the API
            if isinstance(error, JobCancelledError) and self._attempt > 1:  # which may wait for it
                self._workshop.reporter.report_cancelled(self._task_run_id, error.message)
            self._tell(error)
            return
        if isinstance(error, JobCancelledError):  # it has ended, if well or not, all the same
            if self._was_recalled:
                self._was_recalled = False
                self._workshop.reporter.report_no_replay(self._task_run_id, error.message)
            self._tell(error)
            return
        details = StateDetails(
            task_run_id=self._task_run_id, flow_run_id=self._workshop.flow_run_id
        )
        state = crashed_by(error, details)
        self._workshop.reporter.report_crash(self._task_run_id, state, self._task)
        if isinstance(error, ResultLostError):
            self._tell(error)
        else:  # those who need it fail by its State, as by that of any task run
            self._made(self._workshop.hub.handover.snapshot(encode(state)))

    def _tell(self, made: Parcel | WorkerError) -> None:
        self._inputs = []
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._workshop.do(partial(waiter, made))


def _is_gone(parcel: Parcel | None) -> bool:
    return parcel is None or parcel.is_lost
