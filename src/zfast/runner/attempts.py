"""Attempts: which worker runs which job, for the how-manieth time, and whose word counts.

Each run of a job is an attempt, numbered from 1, or from where the job says. A job is held by one
worker at a time, and only what its holder says about the current attempt counts. When the holder
dies, what it had begun is run again as the next attempt; what it had not is handed out anew, as the
same attempt.

::

    queued ─ assign ─▶ held ─ finish ─▶ finished, and forgotten
      ▲                 │
      ├── give_back ────┤
      └── end_worker ───┴─ max_worker_deaths reached ─▶ given up, and forgotten

Nothing here knows a socket, a process or a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from zfast.runner.job import Job

#: Who holds jobs: a worker's routing id.
Holder = bytes


@dataclass(slots=True, eq=False)
class Assignment:
    """A job in the hands of a worker.

    Attributes:
        attempt: Its number, from 1.
        serial: Counts what the worker was assigned, from 1; it runs it in this order.
        nbytes: Bytes that travelled for it.
        since: When the worker can have begun it, by the monotonic clock.
        recalled: It was asked for again.
    """

    job: Job
    holder: Holder
    attempt: int
    serial: int
    nbytes: int = 0
    since: float = 0.0
    recalled: bool = False


@dataclass(slots=True)
class Fallout:
    """What becomes of the jobs of a worker that died.

    Attributes:
        begun: To be run again, as the next attempt.
        untouched: To be handed out again: the worker had not begun them.
        given_up: Their workers died too often; how each died, the last one last.
    """

    begun: list[Job] = field(default_factory=list)
    untouched: list[Job] = field(default_factory=list)
    given_up: list[tuple[Job, list[str]]] = field(default_factory=list)


@dataclass(slots=True)
class _Record:
    job: Job
    attempt: int
    assignment: Assignment | None = None


class AttemptTable:
    """Every unfinished job. Threads: one at a time; the caller sees to it.

    Args:
        max_worker_deaths: A job is given up when so many workers have died of it.
    """

    def __init__(self, max_worker_deaths: int) -> None:
        self._max_worker_deaths = max_worker_deaths
        self._records: dict[bytes, _Record] = {}
        self._held: dict[Holder, dict[bytes, Assignment]] = {}
        self._serials: dict[Holder, int] = {}
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Job]:
        return iter([record.job for record in self._records.values()])

    def __contains__(self, job: Job) -> bool:
        return job.job_id in self._records

    def add(self, job: Job) -> None:
        """Take in a job, queued.

        Raises:
            ValueError: Its id is known.
        """
        if job.job_id in self._records:
            raise ValueError(f"job {job.job_id.hex()} was submitted before and has not ended")
        self._records[job.job_id] = _Record(job, job.first_attempt)

    def attempt(self, job: Job) -> int:
        """The number of a job's current attempt, or of its next if it is queued."""
        return self._records[job.job_id].attempt

    def assign(self, job: Job, holder: Holder, *, nbytes: int, now: float) -> Assignment:
        """Hand a queued job to a worker.

        Raises:
            ValueError: It is not queued.
        """
        record = self._records.get(job.job_id)
        if record is None or record.assignment is not None:
            raise ValueError(f"job {job.job_id.hex()} is not queued")
        serial = self._serials[holder] = self._serials.get(holder, 0) + 1
        held = self._held.setdefault(holder, {})
        assignment = Assignment(job, holder, record.attempt, serial, nbytes, now)
        record.assignment = held[job.job_id] = assignment
        self._nbytes += nbytes
        return assignment

    def finish(
        self, job_id: bytes, attempt: int, holder: Holder, *, now: float
    ) -> Assignment | None:
        """Take out a job of which its holder has told the end; None if its word does not count."""
        assignment = self._current(job_id, attempt, holder)
        if assignment is None:
            return None
        self._let_go(assignment)
        del self._records[job_id]
        for following in self._held[holder].values():
            following.since = now
        return assignment

    def give_back(self, job_id: bytes, attempt: int, holder: Holder) -> Job | None:
        """Queue a job again that its holder has not begun; None if its word does not count."""
        assignment = self._current(job_id, attempt, holder)
        if assignment is None:
            return None
        self._let_go(assignment)
        return assignment.job

    def end_worker(self, holder: Holder, begun: int | None, cause: str) -> Fallout:
        """Take back everything from a worker that died.

        Args:
            begun: The serial of the last assignment that it began; it died of this one, if it had
                not told the end of it. None if nobody knows: it may have begun any, and died of
                the first.
            cause: How it died.
        """
        fallout = Fallout()
        held = self.held_by(holder)
        first = held[0].serial if held else 0
        for assignment in held:
            job, record = assignment.job, self._records[assignment.job.job_id]
            self._let_go(assignment)
            if begun is not None and assignment.serial > begun:
                fallout.untouched.append(job)
                continue
            record.attempt += 1
            if assignment.serial == (first if begun is None else begun):
                job.deaths.append(cause)
            if len(job.deaths) >= self._max_worker_deaths:
                del self._records[job.job_id]
                fallout.given_up.append((job, job.deaths))
            else:
                fallout.begun.append(job)
        self._held.pop(holder, None)
        self._serials.pop(holder, None)
        return fallout

    def forget(self, job: Job) -> None:
        """Take out a job whatever its state: what is still said about it does not count."""
        record = self._records.pop(job.job_id, None)
        if record is not None and record.assignment is not None:
            self._let_go(record.assignment)

    def held_by(self, holder: Holder) -> list[Assignment]:
        """What a worker holds, in the order in which it runs it."""
        return list(self._held.get(holder, {}).values())

    def n_held(self, holder: Holder) -> int:
        """How much a worker holds."""
        return len(self._held.get(holder, ()))

    def n_assigned(self, holder: Holder) -> int:
        """How much a worker was assigned so far."""
        return self._serials.get(holder, 0)

    def is_suspect(self, job: Job) -> bool:
        """Whether a worker has died of it, so that it better runs alone."""
        return bool(job.deaths)

    @property
    def inflight_nbytes(self) -> int:
        """Bytes that travelled for what is held now."""
        return self._nbytes

    def _current(self, job_id: bytes, attempt: int, holder: Holder) -> Assignment | None:
        assignment = self._held.get(holder, {}).get(job_id)
        return assignment if assignment is not None and assignment.attempt == attempt else None

    def _let_go(self, assignment: Assignment) -> None:
        job_id = assignment.job.job_id
        del self._held[assignment.holder][job_id]
        self._nbytes -= assignment.nbytes
        record = self._records.get(job_id)
        if record is not None:
            record.assignment = None
