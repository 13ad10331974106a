"""Link: counted, acknowledged delivery of messages between a ROUTER and its DEALERs.

Every message is counted by both sides and acknowledged when it is handed over, so that closing
can tell whether everything arrived. libzmq's linger cannot: a receiver at its high-water mark
loses the tail of an ipc connection that its peer closes.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import zmq

from zfast import _core
from zfast.addresses import SocketFile, is_served, parse_endpoint
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.deadline import Deadline
from zfast.errors import (
    ChannelClosedError,
    ConfigError,
    ProtocolError,
    RecvTimeoutError,
    SendTimeoutError,
    TransportError,
)

#: Messages queued for a peer before a sender waits, and received before a peer has to wait.
DEFAULT_HWM = 1000
#: A busy receiver acknowledges at least every so many messages; an idle one at once.
ACK_EVERY = 64
#: How often a wait looks again at what no poll reports, such as room at one peer of a ROUTER.
LOOK_AGAIN_S = 0.02
#: How often a closing ROUTER looks whether the peers it waits for are still there.
PROBE_EVERY_S = 0.2
#: How long a closed socket's last words may take to leave.
LINGER_MS = 1000


class Kind(IntEnum):
    """What a message on a link means."""

    HELLO = 1
    VALUE = 2
    BATCH = 3
    ACK = 4
    GOODBYE = 5


@dataclass(slots=True)
class Peer:
    """What one side knows of the other: counts of messages since they met."""

    routing_id: bytes | None
    sent: int = 0
    acknowledged: int = 0
    received: int = 0
    received_acknowledged: int = 0
    gone: bool = False


class Link:
    """One side of a link. Threads: one at a time; the caller sees to it.

    Args:
        url: See ``zfast.addresses.parse_endpoint``.
        bound: Bind a ROUTER, which takes any number of peers; else connect a DEALER.
        hwm: High-water mark in messages, for each peer and direction.
        insecure: Allow unencrypted tcp on loopback.

    Raises:
        ConfigError: The endpoint is malformed or unprotected.
        TransportError: It cannot be opened; ``errno`` says why.
    """

    def __init__(self, url: str, *, bound: bool, hwm: int, insecure: bool) -> None:
        endpoint = parse_endpoint(url, insecure=insecure)
        if not isinstance(hwm, int) or hwm < 1:
            raise ConfigError(f"hwm must be a whole number of messages from 1 on, not {hwm!r}")
        if bound and is_served(endpoint):
            raise TransportError(
                f"cannot bind {endpoint}: Address already in use",
                errno=errno.EADDRINUSE,
                hint="another process listens there",
            )
        self.endpoint = str(endpoint)
        self.bound = bound
        self.inbox: deque[tuple[Peer, _core.Message | _core.Batch]] = deque()
        self.peers: dict[bytes | None, Peer] = {} if bound else {None: Peer(None)}
        self._socket = process_context().socket(zmq.ROUTER if bound else zmq.DEALER)
        self._socket.set_hwm(hwm)
        self._socket.linger = 0
        self._file: SocketFile | None = None
        # Not ZMQ_IMMEDIATE: with it, what a peer said before it closed is lost (libzmq 4.3.5).
        self._connection = None
        if not bound and endpoint.scheme != "inproc":
            self._connection = ConnectionMonitor(self._socket)
        try:
            if bound:
                self._socket.router_mandatory = True
                self._socket.bind(self.endpoint)
                self._file = SocketFile(endpoint)
                self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
            else:
                self._socket.connect(self.endpoint)
                _core.send_message(self._socket, Kind.HELLO, b"")
        except zmq.ZMQError as error:
            self.abort()
            raise TransportError(
                f"cannot {'bind' if bound else 'connect to'} {endpoint}: {error.strerror}",
                errno=error.errno,
            ) from error

    @property
    def closed(self) -> bool:
        """True after ``close`` or ``abort``."""
        return bool(self._socket.closed)

    def _poll(self, events: int, timeout: float | None) -> None:
        also = self._connection.socket if self._connection is not None else None
        _core.poll(self._socket, events, timeout, also)

    # ---- sending -----------------------------------------------------------------------

    def send_message(
        self,
        peer: Peer,
        payload: tuple[bytes, list[memoryview]],
        deadline: Deadline,
        *,
        copy: bool,
        tracker: _core.SendTracker,
    ) -> None:
        """Send one value's header and buffers, waiting for room. See ``_core.send_message``."""
        self._send(
            peer,
            lambda: _core.send_message(
                self._socket,
                Kind.VALUE,
                payload[0],
                payload[1],
                routing_id=peer.routing_id,
                copy=copy,
                tracker=tracker,
            ),
            deadline,
        )

    def send_batch(self, peer: Peer, payloads: list[object], start: int, deadline: Deadline) -> int:
        """Send the next batch of ``payloads``, waiting for room; how many went into it."""
        return self._send(
            peer,
            lambda: _core.send_batch(
                self._socket, payloads, start, kind=Kind.BATCH, routing_id=peer.routing_id
            ),
            deadline,
            progress=f"{start} of {len(payloads)} payloads were sent",
        )

    def _send(
        self, peer: Peer, attempt: Callable[[], int], deadline: Deadline, progress: str = ""
    ) -> int:
        while True:
            self.take_incoming()
            self._raise_if_gone()
            try:
                sent = attempt() if self._is_connected() else 0
            except TransportError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                self.peers.pop(peer.routing_id, None)
                raise ChannelClosedError(
                    f"{self.endpoint}: peer {peer.routing_id!r} has gone",
                    errno=error.errno,
                    hint="wait for it to connect again",
                ) from error
            if sent:
                peer.sent += 1
                return sent
            if deadline.expired:
                raise SendTimeoutError(
                    f"{self.endpoint}: no peer took the message in {deadline.timeout} s",
                    detail=progress or None,
                    hint="is the other side running, and does it receive?",
                )
            # An unconnected DEALER has room, a ROUTER cannot be polled for room at one peer.
            waits_for_room = not self.bound and self._is_connected()
            events = _core.POLLOUT if waits_for_room else _core.POLLIN
            self._poll(events, deadline.left(LOOK_AGAIN_S if self.bound else None))

    def choose_peer(self, to: bytes | None, deadline: Deadline) -> Peer:
        """The peer to send to: ``to``, or the only one, waited for if there is none yet."""
        while True:
            self.take_incoming()
            if not self.bound:
                self._raise_if_gone()
                return self.peers[None]
            if to is not None:
                if to not in self.peers:
                    raise ChannelClosedError(f"{self.endpoint}: no peer {to!r} is connected")
                return self.peers[to]
            if len(self.peers) == 1:
                return next(iter(self.peers.values()))
            if self.peers:
                raise ConfigError(
                    f"{self.endpoint}: {len(self.peers)} peers are connected",
                    hint="name one of channel.peers with to=",
                )
            if deadline.expired:
                raise SendTimeoutError(
                    f"{self.endpoint}: no peer connected in {deadline.timeout} s"
                )
            self._poll(_core.POLLIN, deadline.left())

    # ---- receiving ---------------------------------------------------------------------

    def wait(self, deadline: Deadline) -> None:
        """Wait until the inbox has a message."""
        self.take_incoming(limit=1)
        while not self.inbox:
            self._raise_if_gone()
            if deadline.expired:
                raise RecvTimeoutError(
                    f"{self.endpoint}: nothing came in {deadline.timeout} s",
                    hint="is the other side sending?",
                )
            self._poll(_core.POLLIN, deadline.left())
            self.take_incoming(limit=1)

    def next(self) -> _core.Message | _core.Batch:
        """Hand over the inbox's first message, and acknowledge it, now or with a later one."""
        peer, message = self.inbox.popleft()
        peer.received += 1
        if not self.inbox:
            self.take_incoming(limit=1)
        if not self.inbox:
            for owed in list(self.peers.values()):
                self._acknowledge(owed)
        elif peer.received - peer.received_acknowledged >= ACK_EVERY:
            self._acknowledge(peer)
        return message

    def take_incoming(self, limit: int = DEFAULT_HWM) -> None:
        """Read what is there, until the inbox holds ``limit`` messages."""
        while len(self.inbox) < limit:
            message = _core.recv(self._socket, routed=self.bound)
            if message is None:
                return
            peer = self.peers.get(message.routing_id)
            if peer is None:
                peer = self.peers[message.routing_id] = Peer(message.routing_id)
            if message.kind in (Kind.VALUE, Kind.BATCH):
                self.inbox.append((peer, message))
            elif message.kind == Kind.ACK:
                peer.acknowledged = max(peer.acknowledged, message.request_id)
            elif message.kind == Kind.GOODBYE:
                peer.gone = True
                if self.bound and peer.sent <= peer.acknowledged:
                    del self.peers[message.routing_id]
            elif message.kind != Kind.HELLO:
                raise ProtocolError(
                    f"{self.endpoint}: a message of unknown kind {message.kind}", offset=5
                )

    def _is_connected(self) -> bool:
        return self._connection is None or self._connection.connected

    def _raise_if_gone(self) -> None:
        if self.bound or self.inbox:
            return
        if self.peers[None].gone:
            raise ChannelClosedError(f"{self.endpoint}: the peer has closed the channel")
        if self._connection is not None and self._connection.lost:
            # What the peer sent may become readable just after the news of its end.
            _core.poll(self._socket, _core.POLLIN, LOOK_AGAIN_S)
            self.take_incoming(limit=1)
            if not self.inbox and not self.peers[None].gone:
                raise ChannelClosedError(
                    f"{self.endpoint}: the connection to the peer was lost",
                    hint="open a new channel",
                )

    def _acknowledge(self, peer: Peer) -> None:
        # Cumulative: one that finds no room, or no peer, is made good by the next.
        if peer.received > peer.received_acknowledged and self._tell(peer, Kind.ACK, peer.received):
            peer.received_acknowledged = peer.received

    def _tell(self, peer: Peer, kind: Kind, count: int = 0) -> bool:
        try:
            return _core.send_message(
                self._socket, kind, b"", request_id=count, routing_id=peer.routing_id
            )
        except TransportError as error:
            if error.errno == errno.EHOSTUNREACH:
                return False
            raise

    # ---- closing -----------------------------------------------------------------------

    def close(self, deadline: Deadline) -> int:
        """Wait for acknowledgements, say goodbye, close; how many messages stayed unread."""
        try:
            unread = self._wait_for_acknowledgements(deadline)
            for peer in self.peers.values():
                self._acknowledge(peer)
                self._tell(peer, Kind.GOODBYE)
        finally:
            self._close(LINGER_MS)
        return unread

    def abort(self) -> None:
        """Close at once; what is not received yet may be lost."""
        self._close(0)

    def _close(self, linger_ms: int) -> None:
        self.inbox.clear()
        if self._connection is not None:
            self._connection.close()
        self._socket.close(linger=linger_ms)
        if self._file is not None:
            self._file.remove()

    def _wait_for_acknowledgements(self, deadline: Deadline) -> int:
        while True:
            try:
                self.take_incoming()
            except ProtocolError:
                continue
            waiting = [p for p in self.peers.values() if p.acknowledged < p.sent]
            if all(self._is_gone(peer) for peer in waiting) or deadline.expired:
                return sum(peer.sent - peer.acknowledged for peer in waiting)
            # Values the caller never took: the peer's own close() tells of them.
            self.inbox.clear()
            self._poll(_core.POLLIN, deadline.left(PROBE_EVERY_S))

    def _is_gone(self, peer: Peer) -> bool:
        if not self.bound:
            return peer.gone or (self._connection is not None and self._connection.lost)
        if not peer.gone:
            # A ROUTER knows by its refusal that a peer's connection has ended.
            peer.gone = not self._tell(peer, Kind.ACK, peer.received)
        return peer.gone
