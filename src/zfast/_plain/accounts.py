"""What peers may send each other, counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zfast.errors import ProtocolError

#: What each message takes from a peer's credit beside its payload.
MESSAGE_COST = 1024
#: A busy receiver acknowledges at least every so many messages.
ACKNOWLEDGE_EVERY = 64


class Credit:
    """How much may be under way to one peer; see ``_core.Credit``."""

    __slots__ = ("limit", "used")

    def __init__(self) -> None:
        self.used = 0
        self.limit = 0

    def allows(self, cost: int) -> bool:
        """Whether a message of this cost may be sent now."""
        return self.used + cost <= self.limit


class Account:
    """Counts of messages and of bytes between two peers; see ``_core.Account``."""

    __slots__ = (
        "_arrived", "_consumed", "_granted", "_window_nbytes", "acknowledged", "credit", "gone",
        "landings", "received", "received_acknowledged", "routing_id", "sent",
    )  # fmt: skip

    def __init__(
        self, routing_id: bytes | None, credit: Credit, window_nbytes: int | None = None
    ) -> None:
        self.routing_id = routing_id
        self.credit = credit
        self.landings: Mapping[int, Any] = {}
        self.sent = self.acknowledged = self.received = self.received_acknowledged = 0
        self.gone = False
        self._arrived = self._consumed = 0
        self._granted = credit.limit
        self._window_nbytes = window_nbytes

    def may_send(self, nbytes: int) -> bool:
        """Whether the peer has room for a message with so many bytes of payload."""
        return self._window_nbytes is None or self.credit.allows(nbytes + MESSAGE_COST)

    def count_sent(self, nbytes: int) -> None:
        """A value or batch went out; it told the peer what was read."""
        self.sent += 1
        self.received_acknowledged = self.received
        if self._window_nbytes is not None:
            self.credit.used += nbytes + MESSAGE_COST

    def take_acknowledgement(self, count: int, limit: int) -> None:
        """The peer has read ``count`` messages and lets us send up to ``limit``."""
        self.acknowledged = max(self.acknowledged, count)
        self.credit.limit = max(self.credit.limit, limit)

    def may_arrive(self, nbytes: int) -> bool:
        """Whether the peer may have sent so many bytes of payload more."""
        return self._window_nbytes is None or self._arrived + nbytes + MESSAGE_COST <= self._granted

    def count_arrived(self, nbytes: int) -> None:
        """A message is here. Raises ProtocolError if it is more than the peer may send."""
        if self._window_nbytes is None:
            return
        self._arrived += nbytes + MESSAGE_COST
        if self._arrived > self._granted:
            raise ProtocolError(
                f"the peer sent {self._arrived} bytes, {self._granted} were granted",
                hint="the message was dropped",
            )

    def count_consumed(self, nbytes: int) -> None:
        """A message that was here has been read, or copied to where it belongs, or dropped."""
        if self._window_nbytes is not None:
            self._consumed += nbytes + MESSAGE_COST

    def take(self, count: int, nbytes: int) -> None:
        """A value or batch is here; with it the peer said that it has read ``count`` messages."""
        self.acknowledged = max(self.acknowledged, count)
        self.count_arrived(nbytes)

    @property
    def grant_is_due(self) -> bool:
        """Whether so much was consumed that the peer should hear of it before it runs dry."""
        window = self._window_nbytes
        return window is not None and self._consumed + window - self._granted >= window // 4

    @property
    def acknowledgement_is_due(self) -> bool:
        """Whether there is anything that the peer has not heard of."""
        return self.received > self.received_acknowledged or self.grant_is_due

    @property
    def acknowledgement_is_urgent(self) -> bool:
        """Whether the peer should hear of it though messages keep coming."""
        unheard = self.received - self.received_acknowledged
        return unheard >= ACKNOWLEDGE_EVERY or self.grant_is_due

    def next_limit(self) -> int:
        """What the peer's credit may be raised to now."""
        if self._window_nbytes is None:
            return self._granted
        return max(self._granted, self._consumed + self._window_nbytes)

    def acknowledged_up_to(self, received: int, limit: int) -> None:
        """The peer was told."""
        self.received_acknowledged = received
        self._granted = limit
