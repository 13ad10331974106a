"""Staffing: workers are started, told to stop, and given up on when none can be started."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from zfast.errors import WorkerDiedError, WorkerStartError
from zfast.runner.dispatcher import Dispatcher
from zfast.runner.failed_starts import FailedStarts
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.policy import Policy
from zfast.runner.pool import WorkerPool
from zfast.runner.remote_hosts import RemoteHosts
from zfast.runner.worker_handle import WorkerHandle
from zfast.runner.worker_process import WorkerProcess

logger = logging.getLogger("zfast.runner")


class Staffing:
    """Sees to it that there are workers for the jobs. Threads: the hub's only.

    Args:
        remote: Workers of other hosts, which nobody here starts; None where they may not join.
        open_sockets: Called when the first worker was started: from here on there is one to remove
            them if this process dies.

    Attributes:
        broken: Why no worker can be had, once that is clear; jobs end with it.
    """

    def __init__(
        self,
        policy: Policy,
        pool: WorkerPool,
        dispatcher: Dispatcher,
        desk: LeaseDesk,
        remote: RemoteHosts | None,
        open_sockets: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._dispatcher = dispatcher
        self._desk = desk
        self._remote = remote
        self._open_sockets = open_sockets
        self._failed_starts = FailedStarts()
        self.broken: WorkerStartError | None = None

    @property
    def workers(self) -> list[WorkerHandle]:
        """Those that live, wherever."""
        return [*self._pool, *(self._remote or ())]

    @property
    def next_start(self) -> float:
        """When ``start_missing`` must be called at the latest, by the monotonic clock."""
        return self._failed_starts.next_start

    def worker_is_ready(self) -> None:
        """There is one, also where none could be had before."""
        self.broken = None

    def worker_was_useful(self) -> None:
        """A worker has ended a job: workers can be started and can work."""
        self._failed_starts.end()

    def job_has_come(self) -> None:
        """Once the pause after the last failed start is over, another may be tried for it."""
        if time.monotonic() >= self._failed_starts.again_at:
            self.broken = None

    def start_missing(self, *, closing: bool) -> None:
        """Start as many workers as the jobs need; when closing, only for jobs without any."""
        n_jobs = self._dispatcher.n_jobs
        if self.broken:
            # What a dying worker had, or gave back, since.
            if not any(worker.available for worker in self.workers):
                self._dispatcher.fail_queued(self.broken)
            return
        if closing and (not n_jobs or any(worker.available for worker in self.workers)):
            return
        if closing and not self._policy.max_workers and not any(self.workers):
            self._dispatcher.fail_queued(
                WorkerDiedError("the last worker that could run the task again is gone")
            )
        # What workers of other hosts can run needs none here.
        n_missing = self._pool.resize(max(0, n_jobs - sum(w.available for w in self._remote or ())))
        if time.monotonic() < self._failed_starts.again_at:
            return
        try:
            for _ in range(n_missing):
                worker = self._pool.start_worker()
                self._desk.admit(worker.routing_id, worker.process.pid)
                self._open_sockets()
        except OSError as error:  # zmq.ZMQError is not one, and is the hub's failure
            self._failed(f"cannot start a worker process: {error.strerror}")

    def stop_leaving(self, *, closing: bool) -> None:
        """Tell workers to stop that shall and have nothing to do."""
        stop_all = closing and not self._dispatcher.n_jobs
        # At the end, those of other hosts are told farewell.
        for worker in self._pool if stop_all else self.workers:
            if stop_all and not worker.ready:
                worker.kill()
            elif (
                (worker.leaving or stop_all)
                and worker.ready
                and worker.stop_by == float("inf")
                and not self._dispatcher.is_busy(worker)
            ):
                worker.stop()

    def mourn(self, worker: WorkerProcess, *, closing: bool) -> None:
        """A worker is dead: see to its jobs, and to whether others would fare better."""
        was_expected = closing or worker.stop_by < float("inf") or worker.verdict is not None
        has_begun = worker.begun > 0
        self._dispatcher.mourn(worker)
        if has_begun or was_expected:
            return
        words = worker.words
        self._failed(
            f"{self._failed_starts.n + 1} worker processes in a row ended before they were ready "
            f"for a job; the last {worker.cause_of_death}"
            + (f"; its standard error ends with:\n{words}\n" if words else ""),
            hint="can the workers import what the flow needs?",
        )

    @property
    def _may_be_ready_soon(self) -> bool:
        """Whether others are still being started, since before the first of them failed."""
        return any(
            not worker.ready
            and not worker.leaving
            and worker.last_used < self._failed_starts.first_at
            for worker in self._pool
        )

    def _failed(self, message: str, hint: str | None = None) -> None:
        """A worker could not be started: wait a little before the next, or give up."""
        self._failed_starts.add()
        if not self._failed_starts.too_many:
            return
        error = WorkerStartError(message, hint=hint)
        if any(worker.available for worker in self.workers) or self._may_be_ready_soon:
            logger.warning("%s; the other workers go on", error)
            return
        self.broken = error
        self._dispatcher.fail_queued(error)
