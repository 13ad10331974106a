"""Link: counted, acknowledged, flow-controlled delivery between a ROUTER and its DEALERs.

Every message is counted by both sides and acknowledged when it is handed over, so that closing
can tell whether everything arrived. libzmq's linger cannot: a receiver at its high-water mark
loses the tail of an ipc connection that its peer closes. An acknowledgement also says how many
bytes more the receiver takes, so that a slow one bounds its sender's memory and its own. Large
values go as streams, see ``zfast.streams``.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

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
from zfast.peer import Kind, Peer
from zfast.streams import (
    CHUNK_NBYTES,
    INITIAL_CREDIT,
    Admission,
    OutgoingStream,
    StreamedValue,
    StreamKind,
    StreamMessage,
)

#: Messages queued for a peer before a sender waits, and received before a peer has to wait.
DEFAULT_HWM = 1000
#: What may be under way from one peer, in bytes.
DEFAULT_WINDOW_NBYTES = 16 << 20
#: A busy receiver acknowledges at least every so many messages; an idle one at once.
ACK_EVERY = 64
#: How often a wait looks again at what no poll reports, such as room at one peer of a ROUTER.
LOOK_AGAIN_S = 0.02
#: The same while a stream waits for room.
LOOK_AGAIN_STREAMING_S = 0.001
#: How often a ROUTER looks whether peers that it waits for are still there.
PROBE_EVERY_S = 0.2
#: How long a closed socket's last words may take to leave.
LINGER_MS = 1000
#: Errors of peers that are kept for ``recv`` to raise; more are dropped.
MAX_ERRORS = 100

_LIMIT = struct.Struct("<Q")
_ANSWERS = (StreamKind.ACCEPT, StreamKind.REFUSE)
_STREAM_KINDS = frozenset(StreamKind)

logger = logging.getLogger(__name__)

Content = _core.Message | _core.Batch | StreamedValue


@dataclass(slots=True)
class Received:
    """What lies in the inbox: something whole, or what was wrong with it.

    Attributes:
        nbytes: What it still takes from the peer's credit; None for nothing.
    """

    peer: Peer | None
    content: Content | ProtocolError
    nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a link behaves; see ``Channel.bind``."""

    hwm: int = DEFAULT_HWM
    window_nbytes: int = DEFAULT_WINDOW_NBYTES
    memory_nbytes: int = 1 << 62
    checksum: bool = False
    insecure: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.hwm, int) or self.hwm < 1:
            raise ConfigError(f"hwm must be a whole number of messages from 1 on, not {self.hwm!r}")
        if not isinstance(self.window_nbytes, int) or self.window_nbytes < INITIAL_CREDIT:
            raise ConfigError(
                f"window_nbytes must be a whole number from {INITIAL_CREDIT} on, "
                f"not {self.window_nbytes!r}"
            )
        if not isinstance(self.memory_nbytes, int) or self.memory_nbytes < CHUNK_NBYTES:
            raise ConfigError(
                f"memory_nbytes must be a whole number from {CHUNK_NBYTES} on, "
                f"not {self.memory_nbytes!r}"
            )


class Link:
    """One side of a link. Threads: one at a time; the caller sees to it.

    Args:
        url: See ``zfast.addresses.parse_endpoint``.
        bound: Bind a ROUTER, which takes any number of peers; else connect a DEALER.

    Raises:
        ConfigError: The endpoint is malformed or unprotected.
        TransportError: It cannot be opened; ``errno`` says why.
    """

    def __init__(self, url: str, *, bound: bool, options: LinkOptions) -> None:
        endpoint = parse_endpoint(url, insecure=options.insecure)
        if bound and is_served(endpoint):
            raise TransportError(
                f"cannot bind {endpoint}: Address already in use",
                errno=errno.EADDRINUSE,
                hint="another process listens there",
            )
        self.endpoint = str(endpoint)
        self.bound = bound
        #: Over inproc libzmq hands the receiver the sender's own memory: nothing is under way.
        self.shares_memory = endpoint.scheme == "inproc"
        self.inbox: deque[Received] = deque()
        self._checksum = options.checksum
        self._window_nbytes = None if self.shares_memory else options.window_nbytes
        self._admission = Admission(options.memory_nbytes)
        self.peers: dict[bytes | None, Peer] = {} if bound else {None: self._new_peer(None)}
        self._n_errors = 0
        self._blocked = False
        self._closing = False
        self._socket = process_context().socket(zmq.ROUTER if bound else zmq.DEALER)
        self._socket.set_hwm(options.hwm)
        self._socket.linger = 0
        self._file: SocketFile | None = None
        # Not ZMQ_IMMEDIATE: with it, what a peer said before it closed is lost (libzmq 4.3.5).
        self._connection = None
        if not self.shares_memory:
            _core.keep_heap_warm(options.window_nbytes)
            if not bound:
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

    def _new_peer(self, routing_id: bytes | None) -> Peer:
        return Peer(routing_id, self._admission, self._window_nbytes)

    def _poll(self, events: int, timeout: float | None) -> None:
        also = self._connection.socket if self._connection is not None else None
        _core.poll(self._socket, events, timeout, also)

    def _wait_for_news(self, deadline: Deadline) -> None:
        """Wait for a message, or for room if a stream's message found none."""
        events, at_most = _core.POLLIN, None
        if self._blocked and self.bound:
            at_most = LOOK_AGAIN_STREAMING_S  # a ROUTER cannot be polled for room at one peer
        elif self._blocked:
            events |= _core.POLLOUT
        elif self.bound and any(peer.incoming.active for peer in self.peers.values()):
            at_most = PROBE_EVERY_S
        self._poll(events, deadline.left(at_most))
        if at_most == PROBE_EVERY_S and not self._has_incoming():
            self._probe_streaming_peers()

    def _has_incoming(self) -> bool:
        return bool(_core.poll(self._socket, _core.POLLIN, 0))

    # ---- sending -----------------------------------------------------------------------

    def send_small(self, peer: Peer, header: bytes, deadline: Deadline) -> None:
        """Send one value that is all header, waiting for room."""
        self._send(
            peer,
            lambda: _core.send_message(
                self._socket,
                Kind.VALUE,
                header,
                request_id=peer.received,
                routing_id=peer.routing_id,
            ),
            len(header),
            deadline,
        )

    def send_message(
        self,
        peer: Peer,
        header: bytes,
        buffers: list[memoryview],
        nbytes: int,
        deadline: Deadline,
        *,
        copy: bool,
        tracker: _core.SendTracker,
    ) -> None:
        """Send one value as one message, waiting for room. See ``_core.send_message``."""
        self._send(
            peer,
            lambda: _core.send_message(
                self._socket,
                Kind.VALUE,
                header,
                buffers,
                request_id=peer.received,
                routing_id=peer.routing_id,
                copy=copy,
                tracker=tracker,
            ),
            nbytes,
            deadline,
        )

    def send_batch(
        self, peer: Peer, payloads: list[object], start: int, nbytes: int, count: int,
        deadline: Deadline,
    ) -> None:  # fmt: skip
        """Send ``count`` payloads, ``nbytes`` in all, as one batch, waiting for room."""
        self._send(
            peer,
            lambda: _core.send_batch(
                self._socket,
                payloads,
                start,
                kind=Kind.BATCH,
                request_id=peer.received,
                routing_id=peer.routing_id,
                max_count=count,
                max_nbytes=nbytes,
            ),
            nbytes,
            deadline,
            progress=f"{start} of {len(payloads)} payloads were sent",
        )

    def _send(
        self,
        peer: Peer,
        attempt: Callable[[], int],
        nbytes: int,
        deadline: Deadline,
        progress: str = "",
    ) -> None:
        while True:
            self.take_incoming()
            self._raise_if_gone()
            self.pump()
            may_send = peer.may_send(nbytes) and self._is_connected()
            if may_send and self._attempt(peer, attempt):
                peer.count_sent(nbytes)
                peer.received_acknowledged = peer.received  # it rides on the message
                return
            if deadline.expired:
                raise self._nobody_took_it(deadline, progress)
            # An unconnected DEALER has room, a ROUTER cannot be polled for room at one peer.
            waits_for_room = may_send and not self.bound
            events = _core.POLLIN | (_core.POLLOUT if waits_for_room else 0)
            self._poll(events, deadline.left(LOOK_AGAIN_S if self.bound else None))

    def _attempt(self, peer: Peer, attempt: Callable[[], int]) -> int:
        try:
            return attempt()
        except TransportError as error:
            # That is how a ROUTER learns that the peer has gone.
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._lose(peer)
            self.peers.pop(peer.routing_id, None)
            raise ChannelClosedError(
                f"{self.endpoint}: peer {peer.routing_id!r} has gone",
                errno=error.errno,
                hint="wait for it to connect again",
            ) from error

    def _nobody_took_it(self, deadline: Deadline, progress: str = "") -> SendTimeoutError:
        return SendTimeoutError(
            f"{self.endpoint}: no peer took the message in {deadline.timeout} s",
            detail=progress or None,
            hint="is the other side running, and does it receive?",
        )

    def choose_peer(self, to: bytes | None, deadline: Deadline) -> Peer:
        """The peer to send to: ``to``, or the only one, waited for if there is none yet."""
        if not self.bound:
            return self.peers[None]
        while True:
            self.take_incoming()
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

    # ---- streams -----------------------------------------------------------------------

    def open_stream(
        self, peer: Peer, buffers: list[memoryview], tracker: _core.SendTracker, *, batch: bool
    ) -> OutgoingStream:
        """Queue a stream, and send of it what may be sent at once."""
        self.take_incoming()
        self._raise_if_gone()
        stream = peer.outgoing.open(buffers, tracker, batch=batch, checksum=self._checksum)
        peer.sent += 1
        self.pump()
        return stream

    def finish_stream(self, peer: Peer, stream: OutgoingStream, deadline: Deadline) -> None:
        """Send all of a stream. Raises what ended it, or SendTimeoutError."""
        while not stream.ended:
            self.take_incoming()
            self._notice_lost_connection()
            self.pump()
            if not stream.ended:
                if deadline.expired:
                    raise self._nobody_took_it(
                        deadline, f"{stream.offset} of {stream.nbytes} bytes were sent"
                    )
                self._wait_for_news(deadline)
        if stream.failure is not None:
            failed = ChannelClosedError if peer.gone else TransportError
            raise failed(f"{self.endpoint}: the value was not delivered: {stream.failure}")

    def cancel_stream(self, peer: Peer, stream: OutgoingStream) -> None:
        """Send no more of it, and count it no more."""
        peer.sent -= 1
        peer.outgoing.cancel(stream, "it was cancelled")
        self.pump()

    def wait_for(self, tracker: _core.SendTracker, deadline: Deadline) -> bool:
        """Wait until libzmq has let go of a message's buffers, taking what comes meanwhile."""
        while not tracker.wait(deadline.left(LOOK_AGAIN_S)):
            if deadline.expired:
                return False
            self.take_incoming()
            self.pump()
        return True

    def pump(self) -> None:
        """Send what streams may send now: one message of each peer, then the next of each."""
        self._blocked = False
        peers = [p for p in self.peers.values() if p.outgoing.active or p.incoming.replies]
        if peers and self._is_connected():
            while peers:
                peers = [peer for peer in peers if self._send_of_stream(peer)]

    def _send_of_stream(self, peer: Peer) -> bool:
        replies = peer.incoming.replies
        message = replies[0] if replies else peer.outgoing.next_message()
        if message is None:
            return False
        try:
            if not self._send_stream_message(peer, message):
                self._blocked = True
                return False
        except TransportError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._lose(peer)
            return False
        if replies:
            replies.popleft()
        else:
            peer.outgoing.sent(message)
        return True

    def _send_stream_message(self, peer: Peer, message: StreamMessage) -> bool:
        return _core.send_message(
            self._socket,
            message.kind,
            message.body,
            message.buffers,
            flags=message.flags,
            request_id=message.stream_id,
            routing_id=peer.routing_id,
            tracker=message.tracker,
        )

    # ---- receiving ---------------------------------------------------------------------

    def wait(self, deadline: Deadline) -> None:
        """Wait until the inbox has a message."""
        self.take_incoming(limit=1)
        while not self.inbox:
            self._raise_if_gone()
            self.pump()
            if deadline.expired:
                raise RecvTimeoutError(
                    f"{self.endpoint}: nothing came in {deadline.timeout} s",
                    hint="is the other side sending?",
                )
            self.acknowledge_all()
            self._wait_for_news(deadline)
            self.take_incoming(limit=1)

    def next(self) -> Content:
        """Hand over the inbox's first message. See ``owes`` for its acknowledgement.

        Raises:
            ProtocolError: That is what came in its place.
        """
        received = self.inbox.popleft()
        peer, content = received.peer, received.content
        if isinstance(content, ProtocolError):
            self._n_errors -= 1
            raise content
        assert peer is not None
        peer.received += 1
        self._let_go(received)
        if peer.received - peer.received_acknowledged >= ACK_EVERY or peer.grant_is_due:
            self._acknowledge(peer)
        return content

    @property
    def owes(self) -> bool:
        """Whether a peer has not heard yet of a message that was read."""
        return any(peer.acknowledgement_is_due for peer in self.peers.values())

    def acknowledge_all(self) -> None:
        """Tell every peer what was read. Does not wait."""
        for peer in list(self.peers.values()):
            self._acknowledge(peer)

    def _let_go(self, received: Received) -> None:
        """What lay in the inbox lies there no more: its peers may send as much again."""
        if received.nbytes is not None and received.peer is not None:
            received.peer.count_consumed(received.nbytes)
        if isinstance(received.content, StreamedValue):
            self._admission.leave(received.content.stream)
            self.pump()

    def take_incoming(self, limit: int | None = None) -> None:
        """Read what is there, at most until the inbox holds ``limit`` messages.

        What peers send out of order or out of bounds goes into the inbox as an error, for the
        next ``recv`` to raise: it is no concern of who sends.
        """
        while limit is None or len(self.inbox) < limit:
            try:
                message = _core.recv(self._socket, routed=self.bound)
                if message is None:
                    return
                self._take(message)
            except ProtocolError as error:
                if self._n_errors < MAX_ERRORS:
                    self._n_errors += 1
                    self.inbox.append(Received(None, error))

    def _take(self, message: _core.Message | _core.Batch) -> None:
        peer = self.peers.get(message.routing_id)
        if peer is None:
            peer = self.peers[message.routing_id] = self._new_peer(message.routing_id)
        kind = message.kind
        if isinstance(message, _core.Batch):
            if kind != Kind.BATCH:
                raise ProtocolError(f"a batch of kind {kind}, which has none", offset=5)
            self._take_whole(peer, message)
        elif kind == Kind.VALUE:
            self._take_whole(peer, message)
        elif kind in _STREAM_KINDS:
            self._take_of_stream(peer, StreamKind(kind), message)
        elif kind == Kind.ACK:
            if len(message.body) != _LIMIT.size:
                raise ProtocolError("an acknowledgement without a limit", offset=24)
            peer.take_acknowledgement(message.request_id, _LIMIT.unpack(message.body)[0])
        elif kind == Kind.GOODBYE:
            self._lose(peer)
        elif kind != Kind.HELLO:
            raise ProtocolError(
                f"{self.endpoint}: a message of unknown kind {message.kind}", offset=5
            )

    def _take_whole(self, peer: Peer, message: _core.Message | _core.Batch) -> None:
        peer.acknowledged = max(peer.acknowledged, message.request_id)
        peer.count_arrived(message.nbytes)
        self.inbox.append(Received(peer, message, message.nbytes))

    def _take_of_stream(self, peer: Peer, kind: StreamKind, message: _core.Message) -> None:
        if kind in _ANSWERS:
            peer.outgoing.receive(kind, message.request_id, message.body)
            return
        is_chunk = kind == StreamKind.CHUNK
        nbytes = message.nbytes - len(message.body)
        if is_chunk:
            peer.count_arrived(nbytes)
        try:
            value = peer.incoming.receive(
                kind, message.request_id, message.flags, message.body, message.buffers
            )
            if value is not None:
                self.inbox.append(Received(peer, self._unpacked(value)))
        finally:
            if is_chunk:
                peer.count_consumed(nbytes)
                if peer.grant_is_due:
                    self._acknowledge(peer)
            if self._closing:
                peer.incoming.refuse_all("the receiver is closing")
            if peer.incoming.replies:
                self.pump()

    def _unpacked(self, value: StreamedValue) -> Content:
        if not value.is_batch:
            return value
        self._admission.leave(value.stream)
        return _core.unpack(value.buffers[0])

    def _is_connected(self) -> bool:
        return self._connection is None or self._connection.connected

    def _raise_if_gone(self) -> None:
        if self._connection is not None:
            self._connection.read()
        if self.bound or self.inbox:
            return
        if self.peers[None].gone:
            raise ChannelClosedError(f"{self.endpoint}: the peer has closed the channel")
        if self._connection is not None and self._connection.lost:
            # What the peer sent may become readable just after the news of its end.
            _core.poll(self._socket, _core.POLLIN, LOOK_AGAIN_S)
            self.take_incoming(limit=1)
            if not self.inbox and not self.peers[None].gone:
                self.peers[None].lose("the connection was lost")
                raise ChannelClosedError(
                    f"{self.endpoint}: the connection to the peer was lost",
                    hint="open a new channel",
                )

    def _notice_lost_connection(self) -> None:
        if self._connection is not None:
            self._connection.read()
            if self._connection.lost and not self.peers[None].gone:
                self._lose(self.peers[None])

    def _lose(self, peer: Peer) -> None:
        was_receiving = peer.lose("the peer has closed, or the connection was lost")
        if was_receiving and not self._closing:
            logger.warning("%s: a peer went while it was sending a value", self.endpoint)
        if self.bound and peer.sent <= peer.acknowledged:
            self.peers.pop(peer.routing_id, None)

    def _probe_streaming_peers(self) -> None:
        """Find out which senders of half-received values are still there: a ROUTER is not told."""
        for peer in list(self.peers.values()):
            if peer.incoming.active:
                self._acknowledge(peer, probe=True)

    def _acknowledge(self, peer: Peer, *, probe: bool = False) -> None:
        # Cumulative: one that finds no room, or no peer, is made good by the next.
        if probe or peer.acknowledgement_is_due:
            received, limit = peer.received, peer.next_limit()
            if self._tell(peer, Kind.ACK, received, _LIMIT.pack(limit)):
                peer.acknowledged_up_to(received, limit)

    def _tell(self, peer: Peer, kind: Kind, count: int = 0, body: bytes = b"") -> bool:
        try:
            return _core.send_message(
                self._socket, kind, body, request_id=count, routing_id=peer.routing_id
            )
        except TransportError as error:
            if error.errno == errno.EHOSTUNREACH:
                self._lose(peer)
                return False
            raise

    # ---- closing -----------------------------------------------------------------------

    def close(self, deadline: Deadline) -> int:
        """Wait for acknowledgements, say goodbye, close; how many messages stayed unread."""
        self._closing = True
        try:
            unread = self._wait_for_acknowledgements(deadline)
            for peer in list(self.peers.values()):
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
        for peer in self.peers.values():
            peer.outgoing.abandon("the channel was closed")
            peer.incoming.abandon()
        if self._connection is not None:
            self._connection.close()
        self._socket.close(linger=linger_ms)
        if self._file is not None:
            self._file.remove()

    def _wait_for_acknowledgements(self, deadline: Deadline) -> int:
        for peer in self.peers.values():
            peer.incoming.refuse_all("the receiver is closing")
        while True:
            self.take_incoming()
            self._discard_inbox()
            self.pump()
            waiting = [p for p in self.peers.values() if p.acknowledged < p.sent]
            if all(self._is_gone(peer) for peer in waiting) or deadline.expired:
                return sum(peer.sent - peer.acknowledged for peer in waiting)
            if self._blocked:
                self._wait_for_news(deadline)
            else:
                self._poll(_core.POLLIN, deadline.left(PROBE_EVERY_S))

    def _discard_inbox(self) -> None:
        """Values the caller never took: the peer's own close() tells of them."""
        while self.inbox:
            received = self.inbox.popleft()
            self._let_go(received)
            if received.peer is not None and received.peer.grant_is_due:
                self._acknowledge(received.peer)

    def _is_gone(self, peer: Peer) -> bool:
        if self.bound and not peer.gone:
            # A ROUTER knows by its refusal that a peer's connection has ended.
            self._acknowledge(peer, probe=True)
        self._notice_lost_connection()
        return peer.gone
