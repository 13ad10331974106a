"""A worker process: an I/O thread that talks to the hub, and the main thread that runs jobs."""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cloudpickle
import zmq

from zfast import _core, arena
from zfast._watchdog import watch_parent
from zfast.codec import Payload
from zfast.context import process_context
from zfast.errors import ArenaError, ProtocolError, WorkerError
from zfast.runner import cycles
from zfast.runner.job import Blob
from zfast.runner.protocol import (
    PROTOCOL_VERSION,
    AttemptId,
    ControlMessage,
    Failed,
    Forget,
    Free,
    Gone,
    Keep,
    Leaving,
    Note,
    Ready,
    Recall,
    Returned,
    Run,
    Stop,
    Warm,
    decode_control,
    encode_control,
)
from zfast.runner.slate import Slate
from zfast.runner.worker_leases import WorkerLeases
from zfast.sharing.handover import Parcel
from zfast.sharing.segments import next_settling

logger = logging.getLogger("zfast.worker")

Notify = Callable[[str, bytes], None]


class Executor(Protocol):
    """What runs jobs; made once, in the worker's main thread.

    It is made with a function that sends notes, and one that names the memory of a buffer if that
    was received and can never change.
    """

    def run(
        self, code: Blob, context: Blob, parcels: list[Parcel], attempt: int
    ) -> list[Payload]:
        """Run one job: its blobs and parcels in, the result's payloads out.

        Whatever it raises is told to the hub as the job's failure. In an ``attempt`` after the
        first, another worker has died of the job, and may have done any part of it.
        """
        ...

    def warm(self, codes: list[Blob], context: Blob) -> None:
        """Get ready for jobs of these codes in this context, which may never come."""
        ...

    def close(self) -> None:
        """Called once, before the worker ends in order."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """A job as the worker has it. See ``zfast.runner.job.Job``."""

    attempt: AttemptId
    serial: int
    code: Blob
    context: Blob
    parcels: list[Parcel]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What to get ready for."""

    codes: list[Blob]
    context: Blob


class WaitingOrders:
    """What the main thread is to do, in order. Orders can be taken back until it has begun them."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Order | WarmUp | None] = queue.SimpleQueue()
        # To take an order out is to own it: one step, so that only one thread can.
        self._orders: dict[AttemptId, Order] = {}

    def put(self, item: Order | WarmUp | None) -> None:
        """Queue something; None is the end."""
        if isinstance(item, Order):
            self._orders[item.attempt] = item
        self._queue.put(item)

    def take_back(self, attempt: AttemptId) -> bool:
        """Take an order out; False if it was begun."""
        return self._orders.pop(attempt, None) is not None

    def get(self) -> Order | WarmUp | None:
        """What is next, waited for; None at the end."""
        while True:
            item = self._queue.get()
            if not isinstance(item, Order) or self._orders.pop(item.attempt, None) is not None:
                return item


@dataclass(slots=True)
class _Outgoing:
    """A message for the hub; ``sent`` is set when its tracker counts its lent buffers."""

    message: ControlMessage
    buffers: list[bytes | memoryview] = field(default_factory=list)
    tracker: _core.SendTracker | None = None
    sent: threading.Event | None = None


class HubConnection:
    """The worker's end of the hub's endpoint. Its thread owns the socket.

    Args:
        endpoint: The hub's.
        routing_id: Who the hub knows this worker as.
        segment_socket: Where the hub exchanges segments of shared memory; None where it cannot.
        slate: Where to show signs of life.
        beat_s: How often.
    """

    def __init__(
        self,
        endpoint: str,
        routing_id: bytes,
        segment_socket: str | None,
        slate: Slate,
        beat_s: float,
    ) -> None:
        self._endpoint = endpoint
        self._routing_id = routing_id
        self._slate = slate
        self._beat_s = beat_s
        self.leases = WorkerLeases(segment_socket, self._wake)
        self._outbox: deque[_Outgoing] = deque()
        self._wake_receiver, self._wake_sender = os.pipe()
        os.set_blocking(self._wake_receiver, False)
        os.set_blocking(self._wake_sender, False)
        self._blobs: dict[bytes, bytes] = {}
        self.orders = WaitingOrders()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zfast-worker-io", daemon=True)
        self._thread.start()

    def post(
        self, message: ControlMessage, buffers: list[bytes | memoryview] | None = None
    ) -> None:
        """Send a message; large buffers must not change any more. Threads: any."""
        self._post(_Outgoing(message, buffers or []))

    def post_and_wait(self, message: ControlMessage, buffers: list[bytes | memoryview]) -> None:
        """Send a message and wait until its buffers may change."""
        tracker, sent = _core.SendTracker(), threading.Event()
        self._post(_Outgoing(message, buffers, tracker, sent))
        sent.wait()
        tracker.wait()

    def close(self) -> None:
        """Send what is queued and end the thread."""
        self._closing = True
        self._wake()
        self._thread.join()

    def _post(self, outgoing: _Outgoing) -> None:
        self._outbox.append(outgoing)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_sender, b"\0")
        except BlockingIOError:
            pass  # the pipe is full: the thread is awake anyway

    def _run(self) -> None:
        socket = process_context().socket(zmq.DEALER)
        socket.routing_id = self._routing_id
        socket.set_hwm(0)
        socket.reconnect_ivl = 5  # the hub binds just after it has started its first worker
        socket.connect(self._endpoint)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_receiver, zmq.POLLIN)
        while True:
            look_again_s = min(next_settling() - time.monotonic(), self._beat_s)
            poller.poll(max(0, int(look_again_s * 1000)))
            self._slate.beat()
            try:
                os.read(self._wake_receiver, 4096)
            except BlockingIOError:
                pass
            self._receive(socket)
            # Leases that ended before a message was posted may be what its descriptors rest on:
            # they are told after it.
            ended = self.leases.take_messages()
            self._send_outbox(socket)
            for message in ended:
                self._send(socket, _Outgoing(message))
            if self._closing and not self._outbox:
                socket.close(linger=1000)
                return

    def _send_outbox(self, socket: zmq.Socket[bytes]) -> None:
        while self._outbox:
            self._send(socket, self._outbox.popleft())

    def _send(self, socket: zmq.Socket[bytes], outgoing: _Outgoing) -> None:
        kind, body = encode_control(outgoing.message)
        _core.send_message(socket, kind, body, outgoing.buffers, tracker=outgoing.tracker)
        if outgoing.sent is not None:
            outgoing.sent.set()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                received = _core.recv(socket)
                if received is None:
                    return
                if isinstance(received, _core.Batch):
                    raise ProtocolError("a batch from the hub")
                self._handle(decode_control(received), received.buffers)
            except ProtocolError as error:
                logger.warning("message dropped: %s", error)

    def _handle(self, message: ControlMessage, buffers: list[memoryview]) -> None:
        if isinstance(message, Keep):
            self._blobs[message.digest] = bytes(buffers[0])
        elif isinstance(message, Forget):
            self._blobs = {}
        elif isinstance(message, Run):
            self.orders.put(
                Order(
                    message.attempt,
                    message.serial,
                    self._blob(message.code),
                    self._blob(message.context),
                    self.leases.receive(message, buffers),
                )
            )
        elif isinstance(message, Recall):
            if self.orders.take_back(message.attempt):
                self.post(Returned(message.attempt))
        elif isinstance(message, Warm):
            codes = [self._blob(digest) for digest in message.codes]
            self.orders.put(WarmUp(codes, self._blob(message.context)))
        elif isinstance(message, (Free, Gone)):
            self.leases.handle(message)
        elif isinstance(message, Stop):
            self.orders.put(None)
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from the hub")

    def _blob(self, digest: bytes) -> Blob:
        data = self._blobs.get(digest)
        if data is None:
            raise ProtocolError(f"the blob {digest.hex()} was not sent")
        return Blob(digest, data)


def main(config_json: str) -> None:
    """Run a worker until the hub says stop. Called by the process's bootstrap code.

    Args:
        config_json: ``endpoint``, ``routing_id``, ``parent_pid``, ``runtime_folder``, ``executor``,
            ``segment_socket``, ``lifeline``, ``slate``, ``beat_s``, ``initializer``, ``main_file``.
    """
    config = json.loads(config_json)
    if config["main_file"]:
        sys.modules["__main__"].__file__ = config["main_file"]
    watch_parent(config["parent_pid"], config["runtime_folder"])
    module_name, _, name = config["executor"].partition(":")
    if config["segment_socket"]:
        share_arrays()
    for fd in (config["lifeline"], config["slate"]):
        os.set_inheritable(fd, False)  # for its forks, not for what it runs
    slate = Slate(config["slate"])
    connection = HubConnection(
        config["endpoint"],
        config["routing_id"].encode(),
        config["segment_socket"],
        slate,
        config["beat_s"],
    )
    job_id = b""

    def notify(topic: str, data: bytes) -> None:
        connection.post(Note(job_id, topic), [data])

    executor: Executor = getattr(importlib.import_module(module_name), name)(
        notify, connection.leases.handover.identify
    )
    if config["initializer"]:
        function, arguments = cloudpickle.loads(Path(config["initializer"]).read_bytes())
        function(*arguments)
    cycles.modules_loaded()
    leave_when_terminated(connection)
    connection.post(Ready(PROTOCOL_VERSION, os.getpid()))
    while (item := connection.orders.get()) is not None:
        if isinstance(item, WarmUp):
            executor.warm(item.codes, item.context)
        else:
            slate.begun = item.serial
            job_id = item.attempt[0]
            shared_nbytes = sum(parcel.shared_nbytes for parcel in item.parcels)
            shared_nbytes += _run_job(connection, executor, item)
            del item  # its payloads are not to outlive it while the worker waits
            cycles.job_done(shared_nbytes)
    executor.close()
    connection.close()


def leave_when_terminated(connection: HubConnection) -> None:
    """On SIGTERM finish what runs, and get no more jobs. A forked child ends, as ever."""
    pid = os.getpid()

    def handle(_: int, __: object) -> None:
        if os.getpid() == pid:
            connection.post(Leaving())
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)


def share_arrays() -> None:
    """Let NumPy allocate where other processes can read, if that can be had here."""
    try:
        arena.share_memory()
    except ArenaError as error:
        logger.warning("results are copied, not shared: %s", error)


def _run_job(connection: HubConnection, executor: Executor, order: Order) -> int:
    """Run a job and send its result; the bytes of it that are shared."""
    try:
        result = executor.run(order.code, order.context, order.parcels, order.attempt[1])
        done, buffers = connection.leases.pack(order.attempt, result)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt of a task end the task, not the worker.
        message = error.message if isinstance(error, WorkerError) else str(error)
        connection.post(
            Failed(order.attempt, type(error).__name__, message, "".join(traceback.format_exc()))
        )
        return 0
    if any(len(buffer) >= _core.INLINE_MAX_NBYTES for buffer in buffers):
        # The next job may change what this one returned: the buffers must be out by then.
        connection.post_and_wait(done, buffers)
    else:
        connection.post(done, buffers)
    return sum(descriptor.nbytes for descriptor in done.shared if descriptor is not None)
