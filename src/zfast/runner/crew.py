"""The crew: one foreman's worker processes, which serve a hub on another host."""

from __future__ import annotations

import logging
import os
import sys
import time

import zmq

from zfast.errors import ArenaError, ProtocolError, WorkerStartError
from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.data_endpoint import DataEndpoint
from zfast.runner.deliveries import Deliveries
from zfast.runner.failed_starts import FailedStarts
from zfast.runner.host_data import HostData
from zfast.runner.hub_socket import HubSocket
from zfast.runner.policy import Policy
from zfast.runner.pool import WorkerPool
from zfast.runner.protocol import (
    HUB_MESSAGES,
    AttemptId,
    Done,
    Failed,
    Gone,
    Leaving,
    Ready,
    Release,
    Returned,
    Stop,
)
from zfast.runner.remote_protocol import Died, End, Relayed, Retire, Started, Welcome
from zfast.runner.runtime_folder import FOREMAN, RuntimeFolder
from zfast.runner.session import Session
from zfast.runner.vitals import LOOKS_PER_LEASE
from zfast.runner.worker_handle import STOP_GRACE_S
from zfast.runner.worker_process import WorkerConfig, WorkerProcess
from zfast.sharing import exchange

logger = logging.getLogger("zfast.worker")

#: What workers say that the hub need not hear, or not as it is.
_OF_THIS_HOST = {HUB_MESSAGES.kinds[message] for message in (Done, Release, Gone)}


class Crew:
    """The worker processes that serve one session. Threads: one.

    Args:
        session: With the hub.
        poller: Woken when a worker says something or dies.
        welcome: What the hub wants its workers to be started with.
        initializer: What workers call first, pickled.
        data_endpoint: Where other hosts may take data of this one.

    Raises:
        ConfigError, TransportError: The data endpoint cannot be bound.
    """

    def __init__(
        self,
        session: Session,
        poller: zmq.Poller,
        welcome: Welcome,
        initializer: bytes | None,
        n_workers: int,
        data_endpoint: DataEndpoint,
    ) -> None:
        self._session = session
        self._n_workers = n_workers
        self._folder = RuntimeFolder(FOREMAN)
        if initializer is not None:
            (self._folder.path / "initializer.pickle").write_bytes(initializer)
        segment_socket = self._folder.path / exchange.FILE_NAME
        config = WorkerConfig(
            endpoint=self._folder.endpoint,
            runtime_folder=str(self._folder.path),
            executor=welcome.executor,
            environment=welcome.environment,
            segment_socket=str(segment_socket) if exchange.is_supported() else None,
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
        try:
            self._data = HostData(
                session, welcome.session_id, poller, self._folder.path, data_endpoint
            )
        except BaseException:
            self._folder.remove()
            self._socket.close()
            raise
        self._deliveries = Deliveries(self._socket, self._data, self._give_back)
        self._told_leaving: set[bytes] = set()
        self._failed_starts = FailedStarts(n_workers)
        self._leaving = False
        self._retired = False

    @property
    def next_turn(self) -> float:
        """When ``turn`` must be called at the latest, by the monotonic clock."""
        return min(self._pool.next_look, self._failed_starts.next_start, self._data.next_turn)

    @property
    def is_gone(self) -> bool:
        """It was to leave, and has; nobody needs its data any more."""
        return self._retired and not self._data.n_kept

    def take(self, message: ControlMessage, buffers: list[memoryview]) -> None:
        """Take what the hub says."""
        if isinstance(message, Relayed):
            worker = self._pool.get(message.worker)
            if worker is not None:  # else the hub will hear of its death
                if message.kind == HUB_MESSAGES.kinds[Stop]:
                    worker.leaving = True
                    worker.stop_by = time.monotonic() + STOP_GRACE_S
                self._deliveries.put(message.worker, message.kind, message.body, buffers)
        elif isinstance(message, End):
            worker = self._pool.get(message.worker)
            if worker is not None:
                worker.kill(message.verdict)
        elif not self._data.take(message, buffers):
            raise ProtocolError(f"unexpected {type(message).__name__} from the hub")

    def turn(self, *, leaving: bool) -> None:
        """Pass on what workers say, bury the dead, start the missing.

        Raises:
            WorkerStartError: Workers end before they are ready, one after the other.
        """
        self._leaving = leaving
        self._data.turn()
        self._receive()
        for worker in self._pool.bury():
            self._mourn(worker)
        self._pool.look_after()
        for worker in self._pool.take_bereaved():
            self._data.desk.end_worker(worker.routing_id, worker.pid)
        for routing_id, message in self._data.desk.take_messages(w.routing_id for w in self._pool):
            self._socket.send(routing_id, message)
        for worker in self._pool:
            if (worker.leaving or leaving) and worker.routing_id not in self._told_leaving:
                self._told_leaving.add(worker.routing_id)
                self._pass_on(worker.routing_id, *HUB_MESSAGES.encode(Leaving()), [])
                if not worker.ready:
                    worker.kill()
        if not leaving and time.monotonic() >= self._failed_starts.again_at:
            self._start_missing()
        if leaving and not self._pool and not self._retired:
            self._retired = True
            self._session.post(Retire())

    def _start_missing(self) -> None:
        for _ in range(self._pool.resize(self._n_workers)):
            try:
                worker = self._pool.start_worker()
            except OSError as error:
                self._failed(f"cannot start a worker process: {error.strerror}")
                return
            if not self._socket.is_bound:  # from here on there is one to remove it if we die
                self._socket.bind(self._folder.endpoint)
            self._data.desk.admit(worker.routing_id, worker.pid)
            self._session.post(Started(worker.routing_id, worker.pid))

    def _receive(self) -> None:
        while True:
            try:
                received = self._socket.receive_raw()
            except ProtocolError as error:  # any process of this user may say anything here
                logger.warning("message dropped: %s", error)
                continue
            if received is None:
                return
            self._relay(received.routing_id or b"", received.kind, bytes(received.body),
                        received.buffers)  # fmt: skip

    def _relay(self, name: bytes, kind: int, body: bytes, buffers: list[memoryview]) -> None:
        worker = self._pool.get(name)
        if worker is None:
            logger.warning("a message from %r, not a worker, was dropped", name)
            return
        if kind == HUB_MESSAGES.kinds[Ready]:
            self._pool.now_ready(worker)
            self._failed_starts.end()
        try:
            self._take_from_worker(name, kind, body, buffers)
        except ProtocolError as error:
            logger.error("%s is killed for what it said: %s", worker.label, error)
            worker.kill(f"it was killed for what it said: {error.message}")

    def _take_from_worker(
        self, name: bytes, kind: int, body: bytes, buffers: list[memoryview]
    ) -> None:
        if kind in _OF_THIS_HOST:
            message = HUB_MESSAGES.decode(kind, body)
            if isinstance(message, Release):
                self._data.desk.release(name, message.keys)
            elif isinstance(message, Gone):
                self._data.desk.remove_segments(name, message.segment_ids)
            elif isinstance(message, Done):
                self._take_result(name, message, buffers)
        else:
            self._pass_on(name, kind, body, buffers)

    def _take_result(self, name: bytes, message: Done, buffers: list[memoryview]) -> None:
        try:
            done, travelling = self._data.keep(name, message, buffers)
        except (ArenaError, OSError) as error:  # such as too many open files
            failed = Failed(message.attempt, type(error).__name__, str(error), "")
            self._pass_on(name, *HUB_MESSAGES.encode(failed), [])
        else:
            self._pass_on(name, *HUB_MESSAGES.encode(done), travelling)

    def _pass_on(self, name: bytes, kind: int, body: bytes, buffers: Buffers) -> None:
        self._session.post(Relayed(name, kind, body), buffers)

    def _give_back(self, name: bytes, attempt: AttemptId) -> None:
        self._pass_on(name, *HUB_MESSAGES.encode(Returned(attempt)), [])

    def _mourn(self, worker: WorkerProcess) -> None:
        self._deliveries.forget(worker.routing_id)
        was_expected = worker.stop_by < float("inf") or worker.verdict is not None
        self._told_leaving.discard(worker.routing_id)
        self._session.post(
            Died(worker.routing_id, worker.begun, worker.cause_of_death, worker.words)
        )
        if not worker.ready and not was_expected and not self._leaving:
            words = f"; its standard error ends with:\n{worker.words}\n" if worker.words else ""
            self._failed(f"a worker {worker.cause_of_death} before it was ready{words}")

    def _failed(self, message: str) -> None:
        self._failed_starts.add()
        if not self._failed_starts.too_many:
            return
        error = WorkerStartError(message, hint="can this host import what the flow needs?")
        if not any(worker.ready for worker in self._pool):
            raise error
        logger.warning("%s; the other workers go on", error)

    def close(self) -> None:
        """End the workers at once."""
        self._folder.remove()
        self._pool.kill()
        for worker in self._pool:
            worker.release()
        for worker in self._pool.take_survived():
            worker.close()
        self._data.close()
        self._socket.close()


def merged_path(theirs: list[str]) -> list[str]:
    """This host's module search path, then what of the hub's is here too."""
    ours = [os.path.abspath(entry) for entry in sys.path]
    return [*ours, *(entry for entry in theirs if entry not in ours and os.path.isdir(entry))]
