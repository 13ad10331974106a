"""Parking: jobs that wait for data of other hosts, each at the worker that is to run it."""

from __future__ import annotations

from collections import Counter

from zfast.runner.job import Job


class Parking:
    """Threads: the hub's."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, tuple[Job, bytes]] = {}
        self._n_at: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, worker: bytes) -> None:
        """Let a job wait for a worker, that of a routing id, which is given no other meanwhile."""
        self._jobs[job.job_id] = job, worker
        self._n_at[worker] += 1

    def take(self, job: Job) -> bool:
        """Take a job out; False if it was taken out before."""
        parked, worker = self._jobs.get(job.job_id, (None, b""))
        if parked is not job:
            return False
        del self._jobs[job.job_id]
        self._n_at[worker] -= 1
        if not self._n_at[worker]:
            del self._n_at[worker]
        return True

    def drain(self) -> list[Job]:
        """Take all of them out."""
        jobs = [job for job, _ in self._jobs.values()]
        self._jobs.clear()
        self._n_at.clear()
        return jobs

    def n_at(self, worker: bytes) -> int:
        """How many wait for a worker."""
        return self._n_at[worker]
