"""Outbox: what a link sends by itself: parts of streams, answers to streams, acknowledgements."""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Iterator

from zfast import _core
from zfast.errors import TransportError
from zfast.transport.outgoing_streams import OutgoingStream
from zfast.transport.peer import Kind, Peer
from zfast.transport.port import Port
from zfast.transport.streams import StreamMessage

#: The body of an acknowledgement: the limit of the peer's credit.
LIMIT = struct.Struct("<Q")

logger = logging.getLogger(__name__)


class Outbox:
    """Never waits. Threads: one at a time.

    Attributes:
        peers: By routing id; a DEALER's only one under None.
        idle: Nothing is to be sent by ``pump``.
        blocked: The last ``pump`` found no room for what it had.
        closing: The link takes no more values.
    """

    def __init__(self, port: Port, peers: dict[bytes | None, Peer]) -> None:
        self.peers = peers
        self.idle = True
        self.blocked = False
        self.closing = False
        self._port = port

    def pump(self) -> None:
        """Send what streams may send now: what is next to each peer, then again."""
        self.blocked = False
        busy = list(self._busy_peers())
        if busy and self._port.connected:
            peers = busy
            while peers:
                peers = [peer for peer in peers if self._send_of_stream(peer)]
            busy = list(self._busy_peers())
        self.idle = not busy

    def _busy_peers(self) -> Iterator[Peer]:
        return (p for p in self.peers.values() if p.outgoing.active or p.incoming.replies)

    def _send_of_stream(self, peer: Peer) -> bool:
        """Send what is next to a peer. False if nothing is, or there is no room."""
        try:
            return self._send_next(peer)
        except TransportError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self.lose(peer)
            return False

    def _send_next(self, peer: Peer) -> bool:
        replies, outgoing = peer.incoming.replies, peer.outgoing
        if replies:
            if self._send(peer, replies[0]):
                replies.popleft()
                return True
            return False
        departure = outgoing.next_departure()
        if departure is not None:
            return self._send_chunks(peer, *departure)
        message = outgoing.next_message()
        if message is None or not self._send(peer, message):
            return False
        outgoing.sent(message)
        return True

    def _send(self, peer: Peer, message: StreamMessage) -> bool:
        sent = _core.send_message(
            self._port.socket,
            message.kind,
            message.body,
            message.buffers,
            flags=message.flags,
            request_id=message.stream_id,
            routing_id=peer.routing_id,
            tracker=message.tracker,
        )
        self.blocked = self.blocked or not sent
        return sent

    def _send_chunks(self, peer: Peer, stream: OutgoingStream, count: int) -> bool:
        had_room = stream.send(self._port.socket, peer, count)
        peer.outgoing.departed(stream)
        self.blocked = self.blocked or not had_room
        return had_room

    def acknowledge(self, peer: Peer, *, probe: bool = False) -> None:
        """Tell a peer what was read, if it does not know; to ``probe``, in any case.

        Acknowledgements are cumulative: one that finds no room, or no peer, is made good by the
        next.
        """
        if probe or peer.acknowledgement_is_due:
            received, limit = peer.received, peer.next_limit()
            if self.tell(peer, Kind.ACK, received, LIMIT.pack(limit)):
                peer.acknowledged_up_to(received, limit)

    def acknowledge_all(self) -> None:
        """Tell every peer what was read."""
        for peer in list(self.peers.values()):
            self.acknowledge(peer)

    def probe_streaming_peers(self) -> None:
        """Find out which senders of half-received values are still there: a ROUTER is not told."""
        for peer in list(self.peers.values()):
            if peer.incoming.active:
                self.acknowledge(peer, probe=True)

    def tell(self, peer: Peer, kind: Kind, count: int = 0, body: bytes = b"") -> bool:
        """Send one message without a value; False if there is no room, or no peer any more."""
        try:
            return _core.send_message(
                self._port.socket, kind, body, request_id=count, routing_id=peer.routing_id
            )
        except TransportError as error:
            if error.errno == errno.EHOSTUNREACH:
                self.lose(peer)
                return False
            raise

    def lose(self, peer: Peer) -> None:
        """A peer has gone: end its streams, and forget it if it owes nothing."""
        was_receiving = peer.lose("the peer has closed, or the connection was lost")
        if was_receiving and not self.closing:
            logger.warning("%s: a peer went while it was sending a value", self._port.endpoint)
        if self._port.bound and peer.sent <= peer.acknowledged:
            self.peers.pop(peer.routing_id, None)
