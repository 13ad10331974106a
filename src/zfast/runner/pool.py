"""The pool: a hub's worker processes, from their start to their burial."""

from __future__ import annotations

import time
from collections.abc import Iterator

import zmq

from zfast.runner.worker_process import WorkerConfig, WorkerProcess

#: After a worker's death, what it had sent before is still read for so long.
LAST_WORDS_S = 0.05
#: Where the system has no pidfd, deaths are looked for so often.
LOOK_FOR_DEATHS_S = 0.1


class WorkerPool:
    """At most ``max_workers`` processes, whose deaths wake ``poller``. Threads: the hub's only."""

    def __init__(self, config: WorkerConfig, max_workers: int, poller: zmq.Poller) -> None:
        self._config = config
        self._max_workers = max_workers
        self._poller = poller
        self._workers: dict[bytes, WorkerProcess] = {}
        self._dying: list[tuple[float, WorkerProcess]] = []
        self._survived: list[WorkerProcess] = []
        self._n_started = 0

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, routing_id: bytes | None) -> WorkerProcess | None:
        """The worker of that routing id, also one whose death is being seen to."""
        return self._workers.get(routing_id or b"")

    @property
    def idle(self) -> list[WorkerProcess]:
        """Workers that can take a job."""
        return [worker for worker in self if worker.idle]

    def missing(self, n_queued: int) -> int:
        """How many more workers to start for so many queued jobs that no idle one can take."""
        starting = sum(not worker.ready for worker in self)
        return max(0, min(n_queued - starting, self._max_workers - len(self)))

    def start_worker(self) -> WorkerProcess:
        """Start one worker.

        Raises:
            OSError: The process cannot be started.
        """
        self._n_started += 1
        worker = WorkerProcess.start(self._config, f"worker-{self._n_started}".encode())
        self._workers[worker.routing_id] = worker
        if worker.pidfd is not None:
            self._poller.register(worker.pidfd, zmq.POLLIN)
        return worker

    def bury(self) -> list[WorkerProcess]:
        """Take out and give back the workers that are dead and have nothing more to say."""
        now = time.monotonic()
        dying = [worker for _, worker in self._dying]
        for worker in self:
            if worker.exited and worker not in dying:
                worker.stopping = True
                if worker.pidfd is not None:
                    self._poller.unregister(worker.pidfd)
                # One without a job owes nothing.
                self._dying.append((now + LAST_WORDS_S if worker.job else now, worker))
        dead = [worker for at, worker in self._dying if at <= now]
        self._dying = [(at, worker) for at, worker in self._dying if at > now]
        for worker in dead:
            del self._workers[worker.routing_id]
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
            worker.close_lifeline()
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
        """When ``bury`` must be called at the latest, by the monotonic clock."""
        times = [at for at, _ in self._dying]
        if any(worker.pidfd is None for worker in self):
            times.append(time.monotonic() + LOOK_FOR_DEATHS_S)
        return min(times, default=float("inf"))
