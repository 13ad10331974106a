"""Farewell: how a link is closed."""

from __future__ import annotations

from zfast import _core
from zfast.deadline import Deadline
from zfast.transport.inbox import Inbox
from zfast.transport.lookout import PROBE_EVERY_S, Lookout
from zfast.transport.outbox import Outbox
from zfast.transport.peer import Kind
from zfast.transport.port import Port

#: How long a closed socket's last words may take to leave.
LINGER_MS = 1000


class Farewell:
    """The end of one link. Threads: one at a time."""

    def __init__(self, port: Port, inbox: Inbox, outbox: Outbox, lookout: Lookout) -> None:
        self._port = port
        self._inbox = inbox
        self._outbox = outbox
        self._peers = outbox.peers
        self._lookout = lookout

    def close(self, deadline: Deadline) -> int:
        """Wait for acknowledgements, say goodbye, close; how many messages stayed unread."""
        self._outbox.closing = True
        try:
            unread = self._wait_for_acknowledgements(deadline)
            for peer in list(self._peers.values()):
                self._outbox.acknowledge(peer)
                self._outbox.tell(peer, Kind.GOODBYE)
        finally:
            self._close(LINGER_MS)
        return unread

    def abort(self) -> None:
        """Close at once; what is not received yet may be lost."""
        self._close(0)

    def _close(self, linger_ms: int) -> None:
        self._inbox.queue.clear()
        for peer in self._peers.values():
            peer.outgoing.abandon("the channel was closed")
            peer.incoming.abandon()
        self._port.close(linger_ms)

    def _wait_for_acknowledgements(self, deadline: Deadline) -> int:
        for peer in self._peers.values():
            peer.incoming.refuse_all("the receiver is closing")
        while True:
            self._inbox.take()
            self._inbox.discard()
            self._outbox.pump()
            waiting = [p for p in self._peers.values() if p.acknowledged < p.sent]
            if all(self._lookout.is_gone(peer) for peer in waiting) or deadline.expired:
                return sum(peer.sent - peer.acknowledged for peer in waiting)
            if self._outbox.blocked:
                self._lookout.wait_for_news(deadline)
            else:
                self._port.poll(_core.POLLIN, deadline.left(PROBE_EVERY_S))
