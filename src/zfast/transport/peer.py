"""Peer: what one side of a link knows of the other."""

from __future__ import annotations

from enum import IntEnum

from zfast import _core
from zfast.transport.incoming_streams import Admission, IncomingStreams
from zfast.transport.outgoing_streams import OutgoingStreams
from zfast.transport.streams import Credit


class Kind(IntEnum):
    """What a message on a link means; ``StreamKind`` has those of streams."""

    HELLO = 1
    VALUE = 2
    BATCH = 3
    ACK = 4
    GOODBYE = 5


class Peer(_core.Account):
    """The account of what went to and fro, and the streams under way.

    Args:
        routing_id: The peer's name on a ROUTER; None for a DEALER's only peer.
        admission: Memory for what it sends, shared with the other peers.
        window_nbytes: What may be under way from it; None where memory is shared and nothing is.
    """

    __slots__ = ("incoming", "outgoing")

    def __init__(
        self, routing_id: bytes | None, admission: Admission, window_nbytes: int | None
    ) -> None:
        credit = Credit()
        super().__init__(routing_id, credit, window_nbytes)
        self.outgoing = OutgoingStreams(credit)
        self.incoming = IncomingStreams(admission)
        self.landings = self.incoming.open

    def lose(self, reason: str) -> bool:
        """It has gone: end its streams. Whether one of them was half received."""
        self.gone = True
        was_receiving = self.incoming.active
        self.outgoing.abandon(reason)
        self.incoming.abandon()
        return was_receiving
