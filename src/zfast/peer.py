"""Peer: what one side of a link knows of the other, in numbers."""

from __future__ import annotations

from enum import IntEnum

from zfast.errors import ProtocolError
from zfast.streams import (
    INITIAL_CREDIT,
    Admission,
    Credit,
    IncomingStreams,
    OutgoingStreams,
    message_cost,
)


class Kind(IntEnum):
    """What a message on a link means; ``StreamKind`` has those of streams."""

    HELLO = 1
    VALUE = 2
    BATCH = 3
    ACK = 4
    GOODBYE = 5


class Peer:
    """Counts of messages and of bytes since the two met.

    Args:
        routing_id: The peer's name on a ROUTER; None for a DEALER's only peer.
        admission: Memory for what it sends, shared with the other peers.
        window_nbytes: What may be under way from it; None where memory is shared and nothing is.

    Attributes:
        sent, acknowledged: Values and batches to it, and how many of them it has read.
        received, received_acknowledged: Those from it that were read, and what it knows of that.
        gone: It has closed, or its connection was lost.
    """

    __slots__ = (
        "_arrived", "_consumed", "_granted", "_window_nbytes", "acknowledged", "credit", "gone",
        "incoming", "outgoing", "received", "received_acknowledged", "routing_id", "sent",
    )  # fmt: skip

    def __init__(
        self, routing_id: bytes | None, admission: Admission, window_nbytes: int | None
    ) -> None:
        self.routing_id = routing_id
        self.sent = self.acknowledged = 0
        self.received = self.received_acknowledged = 0
        self.gone = False
        self.credit = Credit()
        self.outgoing = OutgoingStreams(self.credit)
        self.incoming = IncomingStreams(admission)
        self._window_nbytes = window_nbytes
        self._arrived = self._consumed = 0
        self._granted = INITIAL_CREDIT

    # ---- sending: the peer's credit ----------------------------------------------------

    def may_send(self, nbytes: int) -> bool:
        """Whether the peer has room for a message with so many bytes of payload."""
        return self._window_nbytes is None or self.credit.allows(message_cost(nbytes))

    def count_sent(self, nbytes: int) -> None:
        """A value or batch went out."""
        self.sent += 1
        if self._window_nbytes is not None:
            self.credit.used += message_cost(nbytes)

    def take_acknowledgement(self, count: int, limit: int) -> None:
        """The peer has read ``count`` messages and lets us send up to ``limit``."""
        self.acknowledged = max(self.acknowledged, count)
        self.credit.limit = max(self.credit.limit, limit)

    # ---- receiving: what the peer was granted ------------------------------------------

    def count_arrived(self, nbytes: int) -> None:
        """A message is here. Raises ProtocolError if it is more than the peer may send."""
        if self._window_nbytes is None:
            return
        self._arrived += message_cost(nbytes)
        if self._arrived > self._granted:
            raise ProtocolError(
                f"the peer sent {self._arrived} bytes, {self._granted} were granted",
                hint="the message was dropped",
            )

    def count_consumed(self, nbytes: int) -> None:
        """A message that was here has been read, or copied to where it belongs, or dropped."""
        if self._window_nbytes is not None:
            self._consumed += message_cost(nbytes)

    @property
    def grant_is_due(self) -> bool:
        """Whether so much was consumed that the peer should hear of it before it runs dry."""
        return self._window_nbytes is not None and (
            self._consumed + self._window_nbytes - self._granted >= self._window_nbytes // 4
        )

    @property
    def acknowledgement_is_due(self) -> bool:
        """Whether there is anything that the peer has not heard of."""
        return self.received > self.received_acknowledged or self.grant_is_due

    def next_limit(self) -> int:
        """What the peer's credit may be raised to now."""
        if self._window_nbytes is None:
            return self._granted
        return max(self._granted, self._consumed + self._window_nbytes)

    def acknowledged_up_to(self, received: int, limit: int) -> None:
        """The peer was told."""
        self.received_acknowledged = received
        self._granted = limit

    # ---- the end -----------------------------------------------------------------------

    def lose(self, reason: str) -> bool:
        """It has gone: end its streams. Whether one of them was half received."""
        self.gone = True
        was_receiving = self.incoming.active
        self.outgoing.abandon(reason)
        self.incoming.abandon()
        return was_receiving
