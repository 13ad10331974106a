"""The dispatcher: hands out jobs, takes back what must not wait, replays what workers died of."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from zfast.errors import ProtocolError, WorkerDiedError, WorkerError, ZfastError
from zfast.runner.attempts import Assignment, AttemptTable
from zfast.runner.job import Blob, Job, Outcome
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.parking import Parking
from zfast.runner.placement import Placement
from zfast.runner.policy import Policy
from zfast.runner.protocol import (
    AttemptId,
    Recall,
    Run,
    Warm,
    join_parcels,
)
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_segment import RemoteSegment
from zfast.runner.scheduling import RECALL_AFTER_S, Durations, FairQueue
from zfast.runner.worker_handle import WorkerHandle

#: A worker that has just started unpickles so many of the codes that were used last.
MAX_WARM_CODES = 8


class Dispatcher:
    """Brings jobs and workers together. Threads: the hub's only.

    Args:
        workers: Lists the workers that live.
    """

    def __init__(
        self,
        policy: Policy,
        desk: LeaseDesk,
        data: RemoteData,
        workers: Callable[[], Iterable[WorkerHandle]],
    ) -> None:
        self._policy = policy
        self._desk = desk
        self._data = data
        self._workers = workers
        self._attempts = AttemptTable(policy.max_worker_deaths)
        self._queue = FairQueue()
        self._durations = Durations()
        self._parking = Parking()
        self._placement = Placement(
            policy, desk, data, self._attempts, self._parking, self._durations, workers
        )
        self._codes: OrderedDict[bytes, Blob] = OrderedDict()
        self._context: Blob | None = None
        self._cancelled: dict[bytes, WorkerError] = {}
        self._next_recall = float("inf")
        #: Jobs that were begun again because their worker died.
        self.n_begun_again = 0
        self._n_submitted = 0

    @property
    def n_jobs(self) -> int:
        """Jobs that are queued or in the hands of workers."""
        return len(self._attempts)

    @property
    def n_ended(self) -> int:
        """Jobs that have ended, well or not."""
        return self._n_submitted - self.n_jobs

    @property
    def n_queued(self) -> int:
        """Jobs that no worker has."""
        return len(self._queue) + len(self._parking)

    @property
    def n_replays(self) -> int:
        """Jobs in an attempt after the first."""
        return sum(self._attempts.attempt(job) > 1 for job in self._attempts)

    @property
    def inflight_nbytes(self) -> int:
        """Bytes that travelled for what workers hold."""
        return self._attempts.inflight_nbytes

    def held_by(self, worker: WorkerHandle) -> list[Assignment]:
        """What a worker has, in the order in which it runs it."""
        return self._attempts.held_by(worker.routing_id)

    @property
    def next_recall(self) -> float:
        """When ``dispatch`` must be called at the latest, by the monotonic clock."""
        return self._next_recall

    def is_busy(self, worker: WorkerHandle) -> bool:
        """Whether a worker has a job."""
        return self._attempts.n_held(worker.routing_id) > 0

    # ---- jobs -----------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job."""
        try:
            self._attempts.add(job)
        except ValueError as error:
            job.settle(WorkerError(str(error), hint="give each job an id of its own"))
            return
        self._n_submitted += 1
        self._queue.put(job)
        self._context = job.context
        self._codes[job.code.digest] = job.code
        self._codes.move_to_end(job.code.digest)
        if len(self._codes) > MAX_WARM_CODES:
            self._codes.popitem(last=False)

    def cancel(self, error: WorkerError, *, replays: bool) -> None:
        """End every job that no worker has begun with ``error``.

        Args:
            replays: Also those that wait to be run again.
        """
        kept: list[Job] = []
        for job in [*self._parking.drain(), *self._queue.drain()]:
            if not replays and self._attempts.attempt(job) > job.first_attempt:
                kept.append(job)
            else:
                self._end(job, error)
        self._queue.put_back(kept)
        for worker in self._workers():
            begun = worker.begun or 0
            for assignment in self._attempts.held_by(worker.routing_id):
                if assignment.serial > begun:
                    self._cancelled[assignment.job.job_id] = error
                    self._recall(worker, assignment)

    def fail_queued(self, error: WorkerError) -> None:
        """End every queued job with ``error``."""
        for job in [*self._parking.drain(), *self._queue.drain()]:
            self._end(job, error)

    def fail_all(self, error: WorkerError) -> None:
        """End every job with ``error``; what workers still say about them does not count.

        Once the workers are killed, what was cancelled, and is known not to have begun, ends so.
        """
        self.fail_queued(error)
        for worker in self._workers():
            for assignment in self._attempts.held_by(worker.routing_id):
                cancelled = self._cancelled.get(assignment.job.job_id)
                if cancelled and worker.begun is not None and assignment.serial > worker.begun:
                    self._end(assignment.job, cancelled)
        for job in self._attempts:
            self._end(job, error)

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._attempts.forget(job)
        self._cancelled.pop(job.job_id, None)
        job.settle(outcome)

    # ---- from and to workers --------------------------------------------------------------

    def dispatch(self) -> None:
        """Hand out what can be handed out; take back what would wait for long."""
        now = time.monotonic()
        while self._queue:
            job = self._queue.first()
            worker = self._placement.worker_for(job)
            if worker is None:
                break
            self._queue.take()
            if (loss := self._data.loss(job)) is not None:
                self._end(job, loss)
            elif absent := self._data.absent(job, worker):
                self._park(job, worker, absent)
            else:
                self._give(worker, job, now)
        self._recall_waiting(now)

    def _park(self, job: Job, worker: WorkerHandle, absent: set[RemoteSegment]) -> None:
        """Let a job wait until what it is given is here; then it is its turn again."""
        self._parking.put(job, worker.routing_id)

        def unpark() -> None:
            if self._parking.take(job):  # not taken back meanwhile
                self._queue.put_back([job])

        self._data.bring_all(absent, unpark)

    def finish(self, worker: WorkerHandle, attempt: AttemptId) -> Job | None:
        """The job whose end a worker tells; None if its word does not count any more."""
        now = time.monotonic()
        assignment = self._attempts.finish(*attempt, worker.routing_id, now=now)
        if assignment is None:
            return None
        self._cancelled.pop(assignment.job.job_id, None)  # too late
        self._durations.add(assignment.job.code.digest, now - assignment.since)
        worker.last_used = now
        return assignment.job

    def take_back(self, worker: WorkerHandle, attempt: AttemptId) -> None:
        """A worker has returned a job that it had not begun.

        Raises:
            ProtocolError: It does not hold that job.
        """
        job = self._attempts.give_back(*attempt, worker.routing_id)
        if job is None:
            raise ProtocolError(f"{worker.label} returns a job that it does not hold")
        self._queue_again([job])

    def _queue_again(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.job_id in self._cancelled:
                self._end(job, self._cancelled[job.job_id])
        self._queue.put_back(job for job in jobs if job in self._attempts)

    def warm(self, worker: WorkerHandle) -> None:
        """Have a worker that has nothing to do yet get ready for jobs like the last ones."""
        if self._context is not None and not self._queue:
            codes = list(self._codes.values())
            worker.keep([*codes, self._context])
            worker.send(Warm([code.digest for code in codes], self._context.digest))

    def mourn(self, worker: WorkerHandle) -> None:
        """Replay what a dead worker had begun, and hand out anew what it had not."""
        words, cause = worker.words, worker.cause_of_death
        fallout = self._attempts.end_worker(worker.routing_id, worker.begun, cause)
        for job in fallout.begun:
            self._cancelled.pop(job.job_id, None)  # too late
            self.n_begun_again += 1
            job.tell_replay(self._attempts.attempt(job), cause)
        self._queue_again([*fallout.begun, *fallout.untouched])
        for job, deaths in fallout.given_up:
            message = f"{worker.label} died while it ran the task: {cause}"
            if len(deaths) > 1:
                message += f"; so did {len(deaths) - 1} before it, and it is not tried again"
            if words:
                message += f"; its standard error ends with:\n{words}\n"
            hint = "is it short of memory, or did the task end its own process?"
            job.settle(WorkerDiedError(message, hint=hint))

    def _give(self, worker: WorkerHandle, job: Job, now: float) -> None:
        try:
            self._data.locate(job, worker)
            counts, shared, buffers = join_parcels(job.parcels, self._data.stays(worker))
        except (ZfastError, OSError) as error:  # such as too many open files
            self._end(job, WorkerError(f"what the task is given cannot be read: {error}"))
            return
        worker.keep([job.code, job.context])
        assignment = self._attempts.assign(
            job, worker.routing_id, nbytes=sum(map(len, buffers)), now=now
        )
        worker.last_used = now
        limit = self._policy.max_tasks_per_worker
        if limit is not None and assignment.serial >= limit:
            worker.leaving = True
        run = Run(
            (job.job_id, assignment.attempt),
            assignment.serial,
            job.code.digest,
            job.context.digest,
            counts,
            shared,
        )
        if worker.is_local:
            self._desk.grant(worker.routing_id, run)
        worker.send(run, buffers)

    def _recall_waiting(self, now: float) -> None:
        """Take back what waits behind a job that takes longer than was thought."""
        self._next_recall = float("inf")
        for worker in self._workers():
            if self._attempts.n_held(worker.routing_id) < 2:
                continue
            running, *waiting = self._attempts.held_by(worker.routing_id)
            recall_at = running.since + RECALL_AFTER_S
            for assignment in waiting:
                if assignment.recalled:
                    continue
                if recall_at <= now or not worker.available:
                    self._recall(worker, assignment)
                else:
                    self._next_recall = min(self._next_recall, recall_at)

    @staticmethod
    def _recall(worker: WorkerHandle, assignment: Assignment) -> None:
        assignment.recalled = True
        worker.send(Recall((assignment.job.job_id, assignment.attempt)))
