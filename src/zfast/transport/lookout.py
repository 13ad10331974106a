"""Lookout: how a link waits, and how it learns that a peer has gone."""

from __future__ import annotations

from zfast import _core
from zfast.deadline import Deadline
from zfast.errors import ChannelClosedError
from zfast.transport.inbox import Inbox
from zfast.transport.outbox import Outbox
from zfast.transport.peer import Peer
from zfast.transport.port import PATIENCE_S, Port

#: How often a wait looks again at what no poll reports, such as room at one peer of a ROUTER.
LOOK_AGAIN_S = 0.02
#: The same while a stream waits for room.
LOOK_AGAIN_STREAMING_S = 0.001
#: How often a ROUTER looks whether peers that it waits for are still there.
PROBE_EVERY_S = 0.2


class Lookout:
    """The waits of one link. Threads: one at a time."""

    def __init__(self, port: Port, inbox: Inbox, outbox: Outbox) -> None:
        self._port = port
        self._inbox = inbox
        self._outbox = outbox
        self._peers = outbox.peers

    def take_soon(self, deadline: Deadline) -> bool:
        """Take the next message if it comes in a moment: cheaper than to poll for it."""
        if self._outbox.blocked or deadline.left(PATIENCE_S) != PATIENCE_S:
            return False
        return self._inbox.take_one(wait=True)

    def wait_for_news(self, deadline: Deadline) -> None:
        """Wait for a message, or for room if a stream's message found none."""
        events, at_most = _core.POLLIN, None
        blocked = self._outbox.blocked
        if blocked and self._port.bound:
            at_most = LOOK_AGAIN_STREAMING_S  # a ROUTER cannot be polled for room at one peer
        elif blocked:
            events |= _core.POLLOUT
        elif self._port.bound and any(peer.incoming.active for peer in self._peers.values()):
            at_most = PROBE_EVERY_S
        self._port.poll(events, deadline.left(at_most))
        if at_most == PROBE_EVERY_S and not _core.poll(self._port.socket, _core.POLLIN, 0):
            self._outbox.probe_streaming_peers()

    def raise_if_gone(self) -> None:
        """Raise ChannelClosedError if a DEALER's peer has gone and all it sent was taken."""
        lost = self._port.lost()
        if self._port.bound or self._inbox.queue:
            return
        peer = self._peers[None]
        if not peer.gone and lost:
            # What the peer sent may become readable just after the news of its end.
            _core.poll(self._port.socket, _core.POLLIN, LOOK_AGAIN_S)
            self._inbox.take(limit=1)
            if not self._inbox.queue and not peer.gone:
                peer.lose("the connection was lost")
                raise ChannelClosedError(
                    f"{self._port.endpoint}: the connection to the peer was lost",
                    hint="open a new channel",
                )
        elif peer.gone:
            raise ChannelClosedError(f"{self._port.endpoint}: the peer has closed the channel")

    def notice_lost_connection(self) -> None:
        """End what is under way if a DEALER's connection is lost."""
        if self._port.lost() and not self._peers[None].gone:
            self._outbox.lose(self._peers[None])

    def is_gone(self, peer: Peer) -> bool:
        """Whether a peer has gone, as far as it can be found out."""
        if self._port.bound and not peer.gone:
            # A ROUTER knows by its refusal that a peer's connection has ended.
            self._outbox.acknowledge(peer, probe=True)
        self.notice_lost_connection()
        return peer.gone
