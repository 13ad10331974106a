"""The reception: what workers say, brought to whom it concerns."""

from __future__ import annotations

import logging
from collections.abc import Callable

from zfast.errors import ProtocolError, WorkerError
from zfast.runner.control import BURST, ControlMessage
from zfast.runner.dispatcher import Dispatcher
from zfast.runner.hub_socket import HubSocket
from zfast.runner.job import JobFailedError, Outcome
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.pool import WorkerPool
from zfast.runner.protocol import (
    HUB_MESSAGES,
    PROTOCOL_VERSION,
    Done,
    Failed,
    Gone,
    Leaving,
    Note,
    Ready,
    Release,
    Returned,
)
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_hosts import RemoteHosts
from zfast.runner.remote_protocol import REMOTE_MESSAGES, AskStatus, Status
from zfast.runner.remote_worker import RemoteWorker
from zfast.runner.staffing import Staffing
from zfast.runner.worker_handle import WorkerHandle
from zfast.runner.worker_process import WorkerProcess
from zfast.sharing.handover import Parcel

logger = logging.getLogger("zfast.runner")

_ASK_STATUS = REMOTE_MESSAGES.kinds[AskStatus]


class Reception:
    """Receives what workers say. Threads: the hub's only.

    Args:
        remote: Workers of other hosts; None where they may not join.
        on_note: Called with the job id, topic and bytes of each note.
        describe: The hub's status as JSON.
    """

    def __init__(
        self,
        socket: HubSocket,
        pool: WorkerPool,
        remote: RemoteHosts | None,
        dispatcher: Dispatcher,
        desk: LeaseDesk,
        data: RemoteData,
        staffing: Staffing,
        on_note: Callable[[bytes, str, memoryview], None],
        describe: Callable[[], bytes],
    ) -> None:
        self._socket = socket
        self._pool = pool
        self._remote = remote
        self._dispatcher = dispatcher
        self._desk = desk
        self._data = data
        self._staffing = staffing
        self._on_note = on_note
        self._describe = describe

    def receive(self) -> None:
        """Take what has come; some of it, others have their turn too."""
        for _ in range(BURST):
            try:
                received = self._socket.receive_raw()
                if received is None:
                    break
                routing_id = received.routing_id or b""
                if received.kind == _ASK_STATUS:
                    reply = REMOTE_MESSAGES.encode(Status())
                    self._socket.send_raw(routing_id, *reply, [self._describe()])
                    continue
                worker = self._pool.get(routing_id)
                if worker is None:
                    raise ProtocolError(f"a message from {routing_id!r}, not a worker")
                message = HUB_MESSAGES.decode(received.kind, received.body)
                self._handle(worker, message, received.buffers)
            except ProtocolError as error:
                logger.warning("message dropped: %s", error)
        for remote_worker, message, buffers in self._remote.receive() if self._remote else ():
            try:
                self._handle(remote_worker, message, buffers)
            except ProtocolError as error:
                logger.warning("message dropped: %s", error)

    def _handle(
        self, worker: WorkerHandle, message: ControlMessage, buffers: list[memoryview]
    ) -> None:
        if isinstance(message, Note):
            try:
                self._on_note(message.job_id, message.topic, buffers[0])
            except Exception:
                logger.exception("a note from %s was not delivered", worker.label)
        elif isinstance(message, (Done, Failed)):
            self._handle_end(worker, message, buffers)
        elif isinstance(message, Release):
            self._desk.release(worker.routing_id, message.keys)
        elif isinstance(message, Gone):
            self._desk.remove_segments(worker.routing_id, message.segment_ids)
        elif isinstance(message, Ready):
            if message.protocol_version != PROTOCOL_VERSION:
                raise ProtocolError(f"worker protocol {message.protocol_version} is not ours")
            if isinstance(worker, WorkerProcess):
                self._pool.now_ready(worker)
            self._staffing.worker_is_ready()
            self._dispatcher.warm(worker)
        elif isinstance(message, Returned):
            self._dispatcher.take_back(worker, message.attempt)
        elif isinstance(message, Leaving):
            worker.leaving = True
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from {worker.label}")

    def _handle_end(
        self, worker: WorkerHandle, message: Done | Failed, buffers: list[memoryview]
    ) -> None:
        job = self._dispatcher.finish(worker, message.attempt)
        if job is None:
            if isinstance(message, Done):
                # Fenced off: taken in as any result, and let go of at once, so that it is freed.
                self._take_result(worker, message, buffers)
            logger.info("%s ended a job that is not its own now", worker.label)
            return
        self._staffing.worker_was_useful()
        job.settle(self._outcome(worker, message, buffers))

    def _outcome(
        self, worker: WorkerHandle, message: Done | Failed, buffers: list[memoryview]
    ) -> Outcome:
        if isinstance(message, Failed):
            return JobFailedError(message.error_type, message.message, message.traceback)
        try:
            return self._take_result(worker, message, buffers)
        except ProtocolError as error:
            logger.error("%s is killed for its result: %s", worker.label, error)
            worker.kill(f"it was killed for its result: {error.message}")
            return WorkerError(f"the result was refused: {error.message}")

    def _take_result(
        self, worker: WorkerHandle, message: Done, buffers: list[memoryview]
    ) -> list[Parcel]:
        if not message.counts:
            raise ProtocolError("a result without a payload")
        if isinstance(worker, RemoteWorker):
            return self._data.receive(worker.host, message, buffers)
        return self._desk.receive(worker.routing_id, message, buffers)
