"""Inbox: takes what comes on a link's socket and keeps whole values for the caller."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from zfast import _core
from zfast.errors import ProtocolError
from zfast.transport.incoming_streams import Admission, StreamedValue
from zfast.transport.link_options import LinkOptions
from zfast.transport.outbox import LIMIT, Outbox
from zfast.transport.peer import Kind, Peer
from zfast.transport.port import Port
from zfast.transport.send_buffer import widen_send_buffer
from zfast.transport.streams import StreamKind

#: Errors of peers that are kept for ``recv`` to raise; more are dropped.
MAX_ERRORS = 100

_ANSWERS = (StreamKind.ACCEPT, StreamKind.REFUSE)
_STREAM_KINDS = frozenset(StreamKind)

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


class Inbox:
    """Receives into a queue. Threads: one at a time.

    Attributes:
        queue: What came, in order.
    """

    def __init__(self, port: Port, outbox: Outbox, options: LinkOptions) -> None:
        self.queue: deque[Received] = deque()
        self._port = port
        self._outbox = outbox
        self._peers = outbox.peers
        self._window_nbytes = None if port.shares_memory else options.window_nbytes
        self._admission = Admission(options.memory_nbytes)
        self._n_errors = 0
        if not port.bound:
            self._add_peer(None)

    def take(self, limit: int | None = None) -> None:
        """Read what is there, at most until the queue holds ``limit`` messages.

        What peers send out of order or out of bounds goes into the queue as an error, for the
        next ``recv`` to raise: it is no concern of who sends.
        """
        while limit is None or len(self.queue) < limit:
            if not self.take_one():
                return

    def take_one(self, *, wait: bool = False) -> bool:
        """Read one message; to ``wait``, if it comes in ``PATIENCE_S``. False if there is none."""
        try:
            message = self._port.recv(self._peers, wait=wait)
        except ProtocolError as error:
            self._put_error(error)
            return True
        if message is not None:
            self.put(message)
        return message is not None

    def put(self, message: _core.Message | _core.Batch | _core.Landing) -> None:
        """Take what was read; of a landing, what it means that something came of it."""
        try:
            self._take(message)
        except ProtocolError as error:
            self._put_error(error)

    def _put_error(self, error: ProtocolError) -> None:
        if self._n_errors < MAX_ERRORS:
            self._n_errors += 1
            self.queue.append(Received(None, error))

    def next(self) -> Content:
        """Hand over the first message of the queue, and count it as read.

        Raises:
            ProtocolError: That is what came in its place.
        """
        received = self.queue.popleft()
        peer, content = received.peer, received.content
        if isinstance(content, ProtocolError):
            self._n_errors -= 1
            raise content
        assert peer is not None
        peer.received += 1
        self._let_go(received)
        if peer.acknowledgement_is_urgent:
            self._outbox.acknowledge(peer)
        return content

    def discard(self) -> None:
        """Drop values that the caller never took: the peer's own close() tells of them."""
        while self.queue:
            received = self.queue.popleft()
            self._let_go(received)
            if received.peer is not None and received.peer.grant_is_due:
                self._outbox.acknowledge(received.peer)

    def _let_go(self, received: Received) -> None:
        """What lay in the queue lies there no more: its peers may send as much again."""
        if received.nbytes is not None and received.peer is not None:
            received.peer.count_consumed(received.nbytes)
        if isinstance(received.content, StreamedValue):
            self._admission.leave(received.content.stream)
            self._outbox.pump()

    def _add_peer(self, routing_id: bytes | None) -> Peer:
        peer = self._peers[routing_id] = Peer(routing_id, self._admission, self._window_nbytes)
        return peer

    def _take(self, message: _core.Message | _core.Batch | _core.Landing) -> None:
        peer = self._peers.get(message.routing_id)
        if peer is None:
            peer = self._add_peer(message.routing_id)
        if isinstance(message, _core.Landing):
            self._take_chunks(peer, message)
            return
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
            if len(message.body) != LIMIT.size:
                raise ProtocolError("an acknowledgement without a limit", offset=24)
            peer.take_acknowledgement(message.request_id, LIMIT.unpack(message.body)[0])
        elif kind == Kind.GOODBYE:
            self._outbox.lose(peer)
        elif kind == Kind.HELLO:
            widen_send_buffer(message.source_fd)
        else:
            raise ProtocolError(
                f"{self._port.endpoint}: a message of unknown kind {message.kind}", offset=5
            )

    def _take_whole(self, peer: Peer, message: _core.Message | _core.Batch) -> None:
        peer.take(message.request_id, message.nbytes)
        self.queue.append(Received(peer, message, message.nbytes))

    def _take_of_stream(self, peer: Peer, kind: StreamKind, message: _core.Message) -> None:
        if kind in _ANSWERS:
            peer.outgoing.receive(kind, message.request_id, message.body)
            self._outbox.idle = False
            return
        is_chunk = kind == StreamKind.CHUNK
        nbytes = message.nbytes - len(message.body)
        if is_chunk:
            peer.count_arrived(nbytes)
        try:
            value = peer.incoming.receive(
                kind, message.request_id, message.flags, message.body, message.buffers
            )
            self._take_streamed(peer, value)
        finally:
            if is_chunk:
                peer.count_consumed(nbytes)
            self._answer(peer)

    def _take_chunks(self, peer: Peer, landing: _core.Landing) -> None:
        self._take_streamed(peer, peer.incoming.landed(landing.stream_id))
        self._answer(peer)

    def _take_streamed(self, peer: Peer, value: StreamedValue | None) -> None:
        if value is not None:
            self.queue.append(Received(peer, self._unpacked(value)))

    def _answer(self, peer: Peer) -> None:
        """Tell a peer what is to be told of its streams."""
        if peer.grant_is_due:
            self._outbox.acknowledge(peer)
        if self._outbox.closing:
            peer.incoming.refuse_all("the receiver is closing")
        if peer.incoming.replies:
            self._outbox.pump()

    def _unpacked(self, value: StreamedValue) -> Content:
        if not value.is_batch:
            return value
        self._admission.leave(value.stream)
        return _core.unpack(value.buffers[0])
