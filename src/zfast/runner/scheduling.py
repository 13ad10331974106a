"""Scheduling: whose job is next, and which worker gets it. Nothing here knows a socket."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from zfast.runner.job import Job

#: A job is handed out in advance, behind another, only if jobs of both codes take less than this.
SHORT_S = 0.05
#: It is taken back, and none is handed out there, when the one before it runs for so long.
RECALL_AFTER_S = 2 * SHORT_S
#: Weight of the latest job in the average duration of its code.
_LATEST = 0.2
#: Codes whose durations are remembered.
MAX_CODES = 1024


class FairQueue:
    """Jobs that wait for a worker. Clients take turns; each one's jobs keep their order."""

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, deque[Job]] = OrderedDict()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def put(self, job: Job) -> None:
        """Append a job to its client's."""
        self._clients.setdefault(job.client, deque()).append(job)
        self._n += 1

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Put jobs, in their order, before everything else of their clients."""
        for job in reversed(list(jobs)):
            waiting = self._clients.setdefault(job.client, deque())
            waiting.appendleft(job)
            self._clients.move_to_end(job.client, last=False)
            self._n += 1

    def first(self) -> Job:
        """The job whose turn it is; there must be one."""
        return next(iter(self._clients.values()))[0]

    def take(self) -> Job:
        """Take it out; the next turn is another client's."""
        client, waiting = next(iter(self._clients.items()))
        job = waiting.popleft()
        self._n -= 1
        if waiting:
            self._clients.move_to_end(client)
        else:
            del self._clients[client]
        return job

    def drain(self) -> Iterator[Job]:
        """Take all of them out."""
        while self._n:
            yield self.take()


class Durations:
    """How long the jobs of each code take, on average."""

    def __init__(self) -> None:
        self._average_s: OrderedDict[bytes, float] = OrderedDict()

    def add(self, code: bytes, duration_s: float) -> None:
        """Take in how long a job took."""
        known = self._average_s.pop(code, duration_s)
        self._average_s[code] = known + _LATEST * (duration_s - known)
        if len(self._average_s) > MAX_CODES:
            self._average_s.popitem(last=False)

    def is_short(self, code: bytes) -> bool:
        """Whether jobs of a code are known to end so soon that one may wait behind another."""
        return self._average_s.get(code, SHORT_S) < SHORT_S
