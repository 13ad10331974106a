"""Sessions: messages that arrive once and in order, however often their connection breaks.

Each side numbers its messages from 1 and keeps them until the other says that they came. After a
cut both say how much came, and what did not is sent again. Large messages go in chunks, numbered
like any other, so that a cut costs what was under way and no more.

Nothing here knows a socket or a clock.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from zfast import _core
from zfast.errors import ProtocolError
from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.remote_protocol import REMOTE_MESSAGES, Chunk, Large
from zfast.transport.streams import CHUNK_NBYTES, CHUNK_PIECES, MESSAGE_COST

#: What may be under way and not acknowledged; the rest waits.
WINDOW_NBYTES = 16 << 20


@dataclass(slots=True)
class Numbered:
    """A message as it goes over the wire."""

    number: int
    kind: int
    body: bytes
    buffers: list[memoryview]

    @property
    def cost(self) -> int:
        """What it takes from the window."""
        return MESSAGE_COST + len(self.body) + sum(buffer.nbytes for buffer in self.buffers)


Part = tuple[int, bytes, list[memoryview]]


class Session:
    """One side of a session. Buffers must not change; they are kept until they have arrived.

    Attributes:
        received: How many of the peer's messages came.
        told: How many of those the peer was told of; for whoever sends acknowledgements.

    Threads: one at a time.
    """

    def __init__(self) -> None:
        self.received = 0
        self.told = 0
        self._waiting: deque[Iterator[Part]] = deque()
        self._unacknowledged: deque[Numbered] = deque()
        self._again: deque[Numbered] = deque()
        self._last_number = 0
        self._inflight_nbytes = 0
        self._arriving: tuple[int, _core.Landing] | None = None

    @property
    def all_arrived(self) -> bool:
        """Whether the peer has said that it has everything."""
        return not (self._waiting or self._unacknowledged)

    # ---- out ------------------------------------------------------------------------------

    def post(self, message: ControlMessage, buffers: Buffers = ()) -> None:
        """Queue a message."""
        kind, body = REMOTE_MESSAGES.encode(message)
        views = [memoryview(buffer) for buffer in buffers]
        if len(body) + sum(view.nbytes for view in views) <= CHUNK_NBYTES:
            self._waiting.append(iter([(kind, body, views)]))
        else:
            self._waiting.append(_in_chunks(kind, [memoryview(body), *views]))

    def next(self) -> Numbered | None:
        """What to send now; None if there is nothing, or the peer must speak first."""
        if self._again:
            return self._again.popleft()
        while self._waiting and self._inflight_nbytes < WINDOW_NBYTES:
            part = next(self._waiting[0], None)
            if part is None:
                self._waiting.popleft()
                continue
            self._last_number += 1
            message = Numbered(self._last_number, *part)
            self._unacknowledged.append(message)
            self._inflight_nbytes += message.cost
            return message
        return None

    def acknowledge(self, received: int) -> None:
        """The peer has so many of our messages.

        Raises:
            ProtocolError: We never sent so many.
        """
        if received > self._last_number:
            raise ProtocolError(f"{received} messages came, of {self._last_number} sent")
        while self._unacknowledged and self._unacknowledged[0].number <= received:
            self._inflight_nbytes -= self._unacknowledged.popleft().cost

    def resume(self, received: int) -> None:
        """On a new connection: send again what did not come on the old ones.

        Raises:
            ProtocolError: As ``acknowledge``.
        """
        self.acknowledge(received)
        self._again = deque(self._unacknowledged)

    # ---- in -------------------------------------------------------------------------------

    def receive(self, message: _core.Message) -> tuple[ControlMessage, list[memoryview]] | None:
        """Take a numbered message; what it is, or None if it came before or is not whole yet.

        Raises:
            ProtocolError: It is malformed, or one before it is missing.
        """
        number = message.request_id
        if number <= self.received:
            return None
        if number != self.received + 1:
            raise ProtocolError(f"message {number} came after message {self.received}", offset=8)
        decoded = REMOTE_MESSAGES.decode(message.kind, message.body)
        self.received = number
        if isinstance(decoded, Large):
            self._begin(decoded)
            return self._landed()
        if isinstance(decoded, Chunk):
            if self._arriving is None:
                raise ProtocolError("a chunk of nothing")
            self._arriving[1].write(message.buffers)
            return self._landed()
        if self._arriving is not None:
            raise ProtocolError(f"{type(decoded).__name__} in the middle of a large message")
        return decoded, message.buffers

    def _begin(self, large: Large) -> None:
        if self._arriving is not None or not large.sizes or len(large.sizes) % 8:
            raise ProtocolError("a large message that is announced wrongly")
        landing = _core.Landing(0, large.sizes)
        try:
            landing.allocate()
        except MemoryError as error:
            raise ProtocolError(f"no memory for {landing.nbytes} bytes: {error}") from error
        self._arriving = large.kind, landing

    def _landed(self) -> tuple[ControlMessage, list[memoryview]] | None:
        assert self._arriving is not None
        kind, landing = self._arriving
        if not landing.whole:
            return None
        self._arriving = None
        body, *buffers = landing.take()
        return REMOTE_MESSAGES.decode(kind, body), [buffer.toreadonly() for buffer in buffers]


def _in_chunks(kind: int, buffers: list[memoryview]) -> Iterator[Part]:
    sizes = struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
    yield (*REMOTE_MESSAGES.encode(Large(kind, sizes)), [])
    departure = _core.Departure(0, buffers, _core.SendTracker(), CHUNK_NBYTES, CHUNK_PIECES)
    chunk = REMOTE_MESSAGES.encode(Chunk())
    while departure.offset < departure.nbytes:
        pieces = departure.pieces()
        departure.advance(sum(piece.nbytes for piece in pieces))
        yield (*chunk, pieces)
