"""The worker's end of the hub's endpoint: a thread that owns the socket."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import zmq

from zfast import _core
from zfast.addresses import parse_endpoint
from zfast.context import process_context
from zfast.errors import ProtocolError
from zfast.runner.control import ControlMessage
from zfast.runner.job import Blob
from zfast.runner.orders import Order, WaitingOrders, WarmUp
from zfast.runner.protocol import (
    HUB_MESSAGES,
    Forget,
    Free,
    Gone,
    Keep,
    Recall,
    Returned,
    Run,
    Stop,
    Warm,
)
from zfast.runner.slate import Slate
from zfast.runner.worker_leases import WorkerLeases
from zfast.security.same_user import connect_only_to_this_user
from zfast.sharing.segments import next_settling

logger = logging.getLogger("zfast.worker")


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
        try:
            self._serve()
        except BaseException:
            # Without this thread the worker would look hung for a whole lease.
            logger.critical("the worker ends: its connection to the hub failed", exc_info=True)
            os._exit(1)

    def _serve(self) -> None:
        socket = process_context().socket(zmq.DEALER)
        socket.routing_id = self._routing_id
        socket.set_hwm(0)
        socket.reconnect_ivl = 5  # the hub binds just after it has started its first worker
        connect_only_to_this_user(socket, parse_endpoint(self._endpoint))
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
        kind, body = HUB_MESSAGES.encode(outgoing.message)
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
                self._handle(HUB_MESSAGES.decode(received.kind, received.body), received.buffers)
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
