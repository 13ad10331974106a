"""Placement: which worker gets a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from zfast.runner.attempts import AttemptTable
from zfast.runner.job import Job
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.parking import Parking
from zfast.runner.policy import Policy
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_worker import RemoteWorker
from zfast.runner.scheduling import RECALL_AFTER_S, Durations
from zfast.runner.worker_handle import WorkerHandle


class Placement:
    """Chooses workers for jobs. Threads: the hub's only.

    Args:
        workers: Lists the workers that live.
    """

    def __init__(
        self,
        policy: Policy,
        desk: LeaseDesk,
        data: RemoteData,
        attempts: AttemptTable,
        parking: Parking,
        durations: Durations,
        workers: Callable[[], Iterable[WorkerHandle]],
    ) -> None:
        self._policy = policy
        self._desk = desk
        self._data = data
        self._attempts = attempts
        self._parking = parking
        self._durations = durations
        self._workers = workers

    def worker_for(self, job: Job) -> WorkerHandle | None:
        """Who gets it now; None if it better waits."""
        n_held, n_parked = self._attempts.n_held, self._parking.n_at
        found = [(w, n_held(w.routing_id), n_parked(w.routing_id)) for w in self._workers()]
        idle = [w for w, held, parked in found if not held + parked and w.available]
        n_busy = sum(held + parked > 0 and w.is_local for w, held, parked in found)
        if n_busy >= self._policy.max_workers:  # the other local ones are spares
            idle = [worker for worker in idle if not worker.is_local]
        if len(idle) > 1:
            return max(idle, key=self._preference(job))
        if idle:
            return idle[0]
        at_one = [w for w, held, parked in found if held == 1 and not parked and w.available]
        return self._worker_behind(at_one, job)

    def _preference(self, job: Job) -> Callable[[WorkerHandle], tuple[int, bool, bool, int, float]]:
        """Those that have the data first, then the host that has, then the experienced, then those
        with the code and the context, then the last used.

        A spare may still be busy warming up.
        """
        owned = self._desk.owned_nbytes(job.parcels)
        on_hosts = self._data.nbytes_on(job.parcels)
        needed = {job.code.digest, job.context.digest}
        return lambda worker: (
            on_hosts.get(worker.host, 0)
            if isinstance(worker, RemoteWorker)
            else owned.get(worker.routing_id, 0),
            worker.is_local,
            self._attempts.n_assigned(worker.routing_id) > 0,
            len(needed & worker.blobs.keys()),
            worker.last_used,
        )

    def _worker_behind(self, workers: list[WorkerHandle], job: Job) -> WorkerHandle | None:
        """A worker whose job will soon be done, so that this one may wait there."""
        if (
            self._attempts.inflight_nbytes > self._policy.max_inflight_nbytes
            or self._attempts.is_suspect(job)
            or not self._durations.is_short(job.code.digest)
        ):
            return None
        ends_soon: list[tuple[float, WorkerHandle]] = []
        overdue = time.monotonic() - RECALL_AFTER_S
        for worker in workers:
            (running,) = self._attempts.held_by(worker.routing_id)
            if (
                running.since > overdue
                and self._durations.is_short(running.job.code.digest)
                and not self._attempts.is_suspect(running.job)
            ):
                ends_soon.append((running.since, worker))
        return min(ends_soon, key=lambda item: item[0])[1] if ends_soon else None
