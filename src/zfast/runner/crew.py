"""The crew: one foreman's worker processes, which serve a hub on another host."""

from __future__ import annotations

import logging
import os
import sys
import time

import zmq

from zfast.errors import ProtocolError, WorkerStartError
from zfast.runner.control import ControlMessage
from zfast.runner.hub_socket import HubSocket
from zfast.runner.policy import Policy
from zfast.runner.pool import WorkerPool
from zfast.runner.protocol import HUB_MESSAGES, Leaving, Ready, Stop
from zfast.runner.remote_protocol import Died, End, Relayed, Started, Welcome
from zfast.runner.runtime_folder import RuntimeFolder
from zfast.runner.session import Session
from zfast.runner.staffing import FIRST_PAUSE_S, MAX_FIRST_FAILURES, MAX_PAUSE_S
from zfast.runner.vitals import LOOKS_PER_LEASE
from zfast.runner.worker_handle import STOP_GRACE_S
from zfast.runner.worker_process import WorkerConfig, WorkerProcess

logger = logging.getLogger("zfast.worker")


class Crew:
    """The worker processes that serve one session. Threads: one.

    Args:
        session: With the hub.
        poller: Woken when a worker says something or dies.
        welcome: What the hub wants its workers to be started with.
        initializer: What workers call first, pickled.
    """

    def __init__(
        self,
        session: Session,
        poller: zmq.Poller,
        welcome: Welcome,
        initializer: bytes | None,
        n_workers: int,
    ) -> None:
        self._session = session
        self._n_workers = n_workers
        self._folder = RuntimeFolder()
        if initializer is not None:
            (self._folder.path / "initializer.pickle").write_bytes(initializer)
        config = WorkerConfig(
            endpoint=self._folder.endpoint,
            runtime_folder=str(self._folder.path),
            executor=welcome.executor,
            environment=welcome.environment,
            segment_socket=None,
            sys_path=merged_path(welcome.sys_path),
            beat_s=welcome.lease_s / LOOKS_PER_LEASE,
            initializer=str(self._folder.path / "initializer.pickle") if initializer else None,
            argv=welcome.argv,
            main_file=welcome.main_file,
        )
        policy = Policy(
            n_workers,
            min_workers=n_workers,
            spares=0,
            lease_s=welcome.lease_s,
            max_worker_nbytes=welcome.max_worker_nbytes,
        )
        self._socket = HubSocket(poller)
        self._pool = WorkerPool(config, policy, self._socket.send, poller, lambda _: True)
        self._told_leaving: set[bytes] = set()
        self._failures = 0
        self._start_again_at = 0.0
        self._leaving = False

    @property
    def next_turn(self) -> float:
        """When ``turn`` must be called at the latest, by the monotonic clock."""
        now = time.monotonic()
        again = self._start_again_at if self._start_again_at > now else float("inf")
        return min(self._pool.next_look, again)

    @property
    def is_gone(self) -> bool:
        """It was to leave, and has."""
        return self._leaving and not self._pool

    def take(self, message: ControlMessage, buffers: list[memoryview]) -> None:
        """Take what the hub says."""
        if isinstance(message, Relayed):
            worker = self._pool.get(message.worker)
            if worker is not None:  # else the hub will hear of its death
                if message.kind == HUB_MESSAGES.kinds[Stop]:
                    worker.leaving = True
                    worker.stop_by = time.monotonic() + STOP_GRACE_S
                self._socket.send_raw(message.worker, message.kind, message.body, buffers)
        elif isinstance(message, End):
            worker = self._pool.get(message.worker)
            if worker is not None:
                worker.kill(message.verdict)
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from the hub")

    def turn(self, *, leaving: bool) -> None:
        """Pass on what workers say, bury the dead, start the missing.

        Raises:
            WorkerStartError: Workers end before they are ready, one after the other.
        """
        self._leaving = leaving
        while (received := self._socket.receive_raw()) is not None:
            self._relay(received.routing_id or b"", received.kind, bytes(received.body),
                        received.buffers)  # fmt: skip
        for worker in self._pool.bury():
            self._mourn(worker)
        self._pool.look_after()
        for worker in self._pool.take_bereaved():
            logger.debug("worker %s and its children are gone", worker.pid)
        for worker in self._pool:
            if (worker.leaving or leaving) and worker.routing_id not in self._told_leaving:
                self._told_leaving.add(worker.routing_id)
                self._pass_on(worker.routing_id, *HUB_MESSAGES.encode(Leaving()), [])
                if not worker.ready:
                    worker.kill()
        if not leaving and time.monotonic() >= self._start_again_at:
            self._start_missing()

    def _start_missing(self) -> None:
        for _ in range(self._pool.resize(self._n_workers)):
            try:
                worker = self._pool.start_worker()
            except OSError as error:
                self._failed(f"cannot start a worker process: {error.strerror}")
                return
            if not self._socket.is_bound:  # from here on there is one to remove it if we die
                self._socket.bind(self._folder.endpoint)
            self._session.post(Started(worker.routing_id, worker.pid))

    def _relay(self, name: bytes, kind: int, body: bytes, buffers: list[memoryview]) -> None:
        worker = self._pool.get(name)
        if worker is None:
            logger.warning("a message from %r, not a worker, was dropped", name)
            return
        if kind == HUB_MESSAGES.kinds[Ready]:
            self._pool.now_ready(worker)
            self._failures = 0
        self._pass_on(name, kind, body, buffers)

    def _pass_on(self, name: bytes, kind: int, body: bytes, buffers: list[memoryview]) -> None:
        self._session.post(Relayed(name, kind, body), buffers)

    def _mourn(self, worker: WorkerProcess) -> None:
        was_expected = worker.stop_by < float("inf") or worker.verdict is not None
        self._told_leaving.discard(worker.routing_id)
        self._session.post(
            Died(worker.routing_id, worker.begun, worker.cause_of_death, worker.words)
        )
        if not worker.ready and not was_expected and not self._leaving:
            words = f"; its standard error ends with:\n{worker.words}\n" if worker.words else ""
            self._failed(f"a worker {worker.cause_of_death} before it was ready{words}")

    def _failed(self, message: str) -> None:
        self._failures += 1
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._failures - 1))
        self._start_again_at = time.monotonic() + pause_s
        if self._failures >= MAX_FIRST_FAILURES * self._n_workers:
            raise WorkerStartError(message, hint="can this host import what the flow needs?")

    def close(self) -> None:
        """End the workers at once."""
        self._folder.remove()
        self._pool.kill()
        for worker in self._pool:
            worker.release()
        for worker in self._pool.take_survived():
            worker.close()
        self._socket.close()


def merged_path(theirs: list[str]) -> list[str]:
    """This host's module search path, then what of the hub's is here too."""
    ours = [os.path.abspath(entry) for entry in sys.path]
    return [*ours, *(entry for entry in theirs if entry not in ours and os.path.isdir(entry))]
