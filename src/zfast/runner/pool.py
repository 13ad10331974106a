"""The pool: a hub's worker processes, from their start to their burial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import zmq

from zfast.runner.last_words import StandardErrors
from zfast.runner.policy import Policy
from zfast.runner.vitals import LOOKS_PER_LEASE
from zfast.runner.worker_handle import STOP_GRACE_S
from zfast.runner.worker_process import Transmit, WorkerConfig, WorkerProcess

#: After a worker's death, what it had sent before is still read for so long.
LAST_WORDS_S = 0.05
#: Where the system has no pidfd, deaths are looked for so often.
LOOK_FOR_DEATHS_S = 0.1
#: Spares are started when no other worker was for so long.
SETTLED_S = 2.0
#: Workers' memory is looked at so often at least, if it is limited.
LOOK_AT_MEMORY_S = 1.0


class WorkerPool:
    """Worker processes, as many as there is work for, whose deaths wake ``poller``.

    Threads: the hub's only.

    Args:
        transmit: How messages reach a worker.
        is_busy: Whether a worker has a job.
    """

    def __init__(
        self,
        config: WorkerConfig,
        policy: Policy,
        transmit: Transmit,
        poller: zmq.Poller,
        is_busy: Callable[[WorkerProcess], bool],
    ) -> None:
        self._config = config
        self._policy = policy
        self._transmit = transmit
        self._poller = poller
        self._is_busy = is_busy
        self._workers: dict[bytes, WorkerProcess] = {}
        self._dying: dict[bytes, float] = {}
        self._survived: list[WorkerProcess] = []
        self._errors = StandardErrors()
        self._n_started = 0
        self._last_change = 0.0
        self._look_every_s = policy.lease_s / LOOKS_PER_LEASE
        if policy.max_worker_nbytes is not None:
            self._look_every_s = min(self._look_every_s, LOOK_AT_MEMORY_S)
        self._next_look = 0.0
        self._next_resize = float("inf")

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, routing_id: bytes | None) -> WorkerProcess | None:
        """The worker of that routing id, also one whose death is being seen to."""
        return self._workers.get(routing_id or b"")

    def now_ready(self, worker: WorkerProcess) -> None:
        """A worker has said that it is ready."""
        worker.ready = True
        worker.last_used = self._last_change = time.monotonic()

    # ---- how many -----------------------------------------------------------------------

    def resize(self, n_jobs: int) -> int:
        """See how many workers to start, and stop those that are idle for too long.

        Args:
            n_jobs: Jobs that are queued or running.

        Returns:
            How many to start.
        """
        now = time.monotonic()
        policy = self._policy
        staying = [w for w in self if not w.leaving and not w.vitals.is_stopped]
        # What a leaving worker runs needs no other worker.
        n_jobs -= sum(worker.leaving and self._is_busy(worker) for worker in self)
        wanted = max(policy.min_workers, min(policy.max_workers, n_jobs))
        with_spares = wanted + (policy.spares if n_jobs > 0 and policy.max_workers else 0)
        self._next_resize = float("inf")
        n_surplus = len(staying) - with_spares
        if n_surplus > 0:
            idle = [w for w in staying if w.ready and not self._is_busy(w)]
            idle.sort(key=lambda worker: worker.last_used)
            for worker in idle[:n_surplus]:
                until = worker.last_used + policy.idle_timeout_s
                worker.leaving = until <= now
                self._wake_by(until, now)
            return 0
        if len(staying) < wanted:
            return wanted - len(staying)
        if n_surplus < 0 and all(worker.ready for worker in staying):
            settled = self._last_change + SETTLED_S
            if settled <= now:
                return -n_surplus
            self._wake_by(settled, now)
        return 0

    def start_worker(self) -> WorkerProcess:
        """Start one worker.

        Raises:
            OSError: The process cannot be started.
        """
        self._n_started += 1
        self._last_change = time.monotonic()
        worker = WorkerProcess.start(
            self._config,
            f"worker-{self._n_started}".encode(),
            self._transmit,
            self._errors,
            self._last_change,
        )
        self._workers[worker.routing_id] = worker
        if worker.pidfd is not None:
            self._poller.register(worker.pidfd, zmq.POLLIN)
        return worker

    def _wake_by(self, when: float, now: float) -> None:
        if when > now:
            self._next_resize = min(self._next_resize, when)

    # ---- how they fare ------------------------------------------------------------------

    def look_after(self) -> None:
        """Kill workers that show no sign of life or do not end; let go of those grown too large."""
        now = time.monotonic()
        for worker in self:
            if worker.stop_by <= now and worker.slate.is_finishing:
                worker.stop_by = now + STOP_GRACE_S
            elif worker.stop_by <= now:
                worker.kill("killed because it did not stop")
        if now < self._next_look:
            return
        self._next_look = now + self._look_every_s
        limit = self._policy.max_worker_nbytes
        for worker in self:
            worker.vitals.look()
            if worker.vitals.is_overdue:
                what = "was stopped" if worker.vitals.is_stopped else "showed no sign of life"
                worker.kill(
                    f"it {what} for {self._policy.lease_s:g} s, its lease, and so was killed"
                )
            # Not before its first job: its successor would be no smaller.
            elif limit is not None and worker.begun and worker.vitals.private_nbytes > limit:
                worker.leaving = True

    def bury(self) -> list[WorkerProcess]:
        """Take out and give back the workers that are dead and have nothing more to say."""
        now = time.monotonic()
        for worker in self:
            if worker.routing_id not in self._dying and worker.exited:
                worker.leaving = True
                if worker.pidfd is not None:
                    self._poller.unregister(worker.pidfd)
                # One without a job owes nothing.
                self._dying[worker.routing_id] = now + LAST_WORDS_S * self._is_busy(worker)
        dead = [self._workers[id_] for id_, at in self._dying.items() if at <= now]
        for worker in dead:
            del self._dying[worker.routing_id], self._workers[worker.routing_id]
            worker.release()
            self._survived.append(worker)
            self._poller.register(worker.lifeline, zmq.POLLIN)
        return dead

    def take_bereaved(self) -> list[WorkerProcess]:
        """Take the buried workers whose forked children are gone too: nobody reads for them."""
        gone = [worker for worker in self._survived if worker.children_gone]
        for worker in gone:
            self._survived.remove(worker)
            self._poller.unregister(worker.lifeline)
            worker.close()
        return gone

    def take_survived(self) -> list[WorkerProcess]:
        """Take every worker that a forked child may have outlived, the living ones too.

        For the end: they are not watched any more.
        """
        survived, self._survived = [*self._survived, *self], []
        return survived

    def kill(self) -> None:
        """End every worker at once."""
        for worker in self:
            worker.kill()

    @property
    def next_look(self) -> float:
        """When the pool must be seen to at the latest, by the monotonic clock."""
        times = [self._next_resize, *self._dying.values()]
        if self._workers:
            times.append(self._next_look)
            times.append(min(worker.stop_by for worker in self))
        if any(worker.pidfd is None for worker in self):
            times.append(time.monotonic() + LOOK_FOR_DEATHS_S)
        return min(times)
