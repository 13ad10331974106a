"""A foreman's line to a hub: one session over as many connections as it takes."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from zfast import _core
from zfast.addresses import EVERY_ADDRESS, host_and_port, is_served, parse_endpoint
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import ConfigError, ProtocolError, TransportError, WorkerError
from zfast.ip_family import connect
from zfast.runner.control import ControlMessage
from zfast.runner.protocol import PROTOCOL_VERSION
from zfast.runner.remote_protocol import (
    HEARTBEAT_MS,
    REMOTE_MESSAGES,
    Beat,
    Farewell,
    Join,
    Refuse,
    Resume,
    Resumed,
    Welcome,
)
from zfast.runner.session import Session
from zfast.security.client_security import ClientSecurity, handshake_error
from zfast.security.same_user import connect_only_to_this_user
from zfast.transport.send_buffer import widen_send_buffer

logger = logging.getLogger("zfast.worker")

#: libzmq tries to connect again so often, at first and at most.
RECONNECT_MS, RECONNECT_MAX_MS = 100, 1000
#: Between two connections of one line.
PAUSE_S = 0.1
#: What was said and not answered in so long is said again, on a new connection.
ANSWER_S = 10.0
#: A hub that was joined is given up when nobody listens there, asked so often in a row.
MAX_DESERTED = 3
ASK_AGAIN_S = 1.0
#: While a token is on its way, it is seen so soon that it was taken.
TOKEN_LOOK_S = 0.05
#: Hub and foreman hear of each other so often at least.
BEAT_S = 2.5


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Where a hub is, and how to reach it.

    Raises:
        ConfigError: The endpoint is malformed or unprotected, or names no host.
    """

    url: str
    security: ClientSecurity | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        guarded = self.security is not None
        endpoint = parse_endpoint(
            self.url, insecure=self.insecure, guarded=guarded, between_processes=True
        )
        if endpoint.scheme == "tcp" and host_and_port(self.url)[0] in EVERY_ADDRESS:
            raise ConfigError(
                f"{endpoint} says where to listen, and not which host to connect to",
                hint="give the name or the address of the flow's host",
            )
        if endpoint.address.endswith(":*"):
            raise ConfigError(f"{endpoint} names no port", hint="the flow's log says which it is")

    @property
    def is_guarded(self) -> bool:
        """Whether keys guard the way there."""
        return self.security is not None and self.url.startswith("tcp:")

    def prepare(self, opened: zmq.Socket[bytes]) -> None:
        """Set a socket's options, and have a token brought if there is one.

        Raises:
            TransportError: The endpoint is another user's, or could be.
        """
        opened.heartbeat_ivl, opened.heartbeat_timeout = HEARTBEAT_MS, 3 * HEARTBEAT_MS
        if self.is_guarded and self.security is not None:
            self.security.guard(opened, self.url)
        opened.reconnect_ivl, opened.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
        connect_only_to_this_user(opened, parse_endpoint(self.url, guarded=True))

    def connect(self, prepared: zmq.Socket[bytes]) -> bool:
        """Connect a socket, after which libzmq goes on trying; False while a token is on its way.

        Raises:
            TokenError, HandshakeError, ConfigError: It is refused, or there is none.
            TransportError: No socket can.
        """
        if self.security is not None and not self.security.may_connect(self.url):
            return False
        connect(prepared, self.url)
        return True

    def is_deserted(self) -> bool:
        """Whether the hub's host says that nobody listens there."""
        host, port = host_and_port(self.url)
        if not self.url.startswith("tcp:"):
            return not is_served(parse_endpoint(self.url))
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            pass  # a network that is down says nothing about the hub
        return False

    def check(self, connection: ConnectionMonitor) -> None:
        """See that the hub lets us in, and is who we trust.

        Raises:
            HandshakeError: It does not, or is not.
        """
        if self.security is None:
            return
        error = handshake_error(self.url, self.security, connection)
        if error is not None:
            raise error


class HubLine:
    """Joins a hub, and stays joined through cuts. Threads: one.

    Args:
        poller: Woken when there is something to receive.

    Attributes:
        session: Of the hub that was joined, or is being joined.
        welcome: What it said; None before.
        over: It is the end of the session: make another line to wait for the next hub.
    """

    def __init__(self, address: HubAddress, poller: zmq.Poller) -> None:
        self._address = address
        self._poller = poller
        self._foreman_id = secrets.token_bytes(16)
        self.session = Session()
        self.welcome: Welcome | None = None
        self.over = False
        self._resumed = False
        self._heard = self._asked = time.monotonic()
        self._next_beat = 0.0
        self._n_deserted = 0
        self._next_look = 0.0
        self._open()

    @property
    def next_turn(self) -> float:
        """When ``receive`` and ``flush`` must be called at the latest, by the monotonic clock."""
        return self._next_beat if self._is_connecting else time.monotonic() + TOKEN_LOOK_S

    # ---- the connection ---------------------------------------------------------------------

    def _open(self) -> None:
        self._socket = process_context().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self._connection = ConnectionMonitor(
            self._socket, only_first=True, on_connected=widen_send_buffer
        )
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._connection.socket, zmq.POLLIN)
        self._asked = time.monotonic()
        self._address.prepare(self._socket)
        self._is_connecting = False
        self._connect()

    def _connect(self) -> None:
        """Connect if we may by now, and say who we are."""
        if self._is_connecting or not self._address.connect(self._socket):
            return
        self._is_connecting = True
        if self.welcome is None:
            self.session = Session()
            host = socket.gethostname()
            self._say(Join(PROTOCOL_VERSION, self._foreman_id, host, os.getpid()))
        else:
            self._resumed = False
            self._say(Resume(self.welcome.session_id, self.session.received))

    def _shut(self, linger_ms: int = 0) -> None:
        self._poller.unregister(self._socket)
        self._poller.unregister(self._connection.socket)
        self._connection.close()
        self._socket.close(linger=linger_ms)

    def _begin_again(self) -> None:
        self._shut()
        time.sleep(PAUSE_S)
        self._open()

    def close(self, linger_ms: int = 0) -> None:
        """End the line."""
        self._shut(linger_ms)

    # ---- in and out -------------------------------------------------------------------------

    def receive(self) -> Iterator[tuple[ControlMessage, list[memoryview]]]:
        """What the hub said.

        Raises:
            HandshakeError: It refuses our key, or is not who we trust.
            WorkerError: It refuses us for good.
            TokenError: Our token is refused.
        """
        self._connect()
        self._connection.read()
        self._address.check(self._connection)
        now = time.monotonic()
        waits = self._connection.connected and (self.welcome is None or not self._resumed)
        if not self._connection.connected:
            self._asked = now
            self._look_for_hub(now)
        try:
            # The last words of a connection that has ended are still there.
            yield from self._drain(now)
        except ProtocolError as error:
            logger.error("what the hub says makes no sense, it is given up: %s", error)
            self.over = True
        if not self.over and (self._connection.lost or (waits and now - self._asked > ANSWER_S)):
            self._begin_again()

    def _look_for_hub(self, now: float) -> None:
        if self.welcome is None or now < self._next_look:
            return
        self._next_look = now + ASK_AGAIN_S
        self._n_deserted = self._n_deserted + 1 if self._address.is_deserted() else 0
        if self._n_deserted >= MAX_DESERTED:
            logger.warning("nobody listens at %s any more: the hub is given up", self._address.url)
            self.over = True

    def _drain(self, now: float) -> Iterator[tuple[ControlMessage, list[memoryview]]]:
        while not self.over:
            received = _core.recv(self._socket)
            if received is None:
                return
            if isinstance(received, _core.Batch):
                raise ProtocolError("a batch from the hub")
            self._heard = now
            if received.request_id == 0:
                self._take_unnumbered(REMOTE_MESSAGES.decode(received.kind, received.body))
            elif (whole := self.session.receive(received)) is not None:
                message, buffers = whole
                if isinstance(message, Welcome):
                    self.welcome, self._resumed = message, True
                yield message, buffers

    def _take_unnumbered(self, message: ControlMessage) -> None:
        if isinstance(message, Beat):
            self.session.acknowledge(message.received)
        elif isinstance(message, Resumed):
            self._resumed = True
            self.session.resume(message.received)
        elif isinstance(message, Farewell):
            self.over = True
        elif isinstance(message, Refuse):
            if message.final:
                raise WorkerError(f"{self._address.url} does not take us: {message.reason}")
            logger.info("the hub says: %s", message.reason)
            self.over = True
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from the hub")

    def flush(self) -> None:
        """Send what there is to send, and show that we live."""
        now = time.monotonic()
        session = self.session
        if self.over or self.welcome is None:
            self._next_beat = now + BEAT_S
            return
        if now - self._heard > self.welcome.lease_s:
            logger.warning("the hub was silent for %g s: it is given up", self.welcome.lease_s)
            self.over = True
        if not self._resumed or not self._connection.connected:
            self._next_beat = now + min(ASK_AGAIN_S, self.welcome.lease_s / 16)
            return
        if now >= self._next_beat or session.told != session.received:
            self._next_beat = now + min(BEAT_S, self.welcome.lease_s / 16)
            session.told = session.received
            self._say(Beat(session.received))
        while (message := session.next()) is not None:
            self._send(message.kind, message.body, message.buffers, message.number)

    def _say(self, message: ControlMessage) -> None:
        self._send(*REMOTE_MESSAGES.encode(message), [])

    def _send(self, kind: int, body: bytes, buffers: list[memoryview], number: int = 0) -> None:
        try:
            _core.send_message(self._socket, kind, body, buffers, request_id=number)
        except TransportError:  # it is kept, and sent again on the next connection
            logger.debug("the hub cannot be reached", exc_info=True)
