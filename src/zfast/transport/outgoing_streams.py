"""Streams on their way out to one peer: which message is next.

Threads: one at a time; the caller sees to it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from zfast import _core
from zfast.errors import ConfigError, ProtocolError
from zfast.transport import streams
from zfast.transport.streams import (
    FLAG_BATCH_CONTENT,
    FLAG_CHECKSUM,
    OFFSET,
    OFFSET_AND_DIGEST,
    StreamKind,
    StreamMessage,
    digest_of,
    message_cost,
)

#: Chunks of a stream that shares its peer with no other.
MANY = 1 << 20


class OutgoingStream(_core.Departure):
    """One value on its way out.

    Args:
        stream_id, buffers, tracker, max_nbytes, max_pieces: As ``_core.Departure``.
        flags: Of the message that announces it.
        checksum: Chunks carry digests.

    Attributes:
        announced: Its OPEN went out.
        accepted: The peer has room for it.
        ended: Nothing more will be sent: it went out whole, or ``failure`` says why it did not.
    """

    __slots__ = ("_checksum", "_flags", "accepted", "announced", "ended", "failure")

    def __init__(
        self,
        stream_id: int,
        buffers: list[memoryview],
        tracker: _core.SendTracker,
        max_nbytes: int,
        max_pieces: int,
        *,
        flags: int,
        checksum: bool,
    ) -> None:
        self.announced = False
        self.accepted = self.nbytes <= streams.EARLY_MAX_NBYTES
        self.ended = False
        self.failure: str | None = None
        self._flags = flags
        self._checksum = checksum
        tracker.hold()

    @property
    def sends_itself(self) -> bool:
        """Whether its next chunk needs nothing that only `next_chunk` gives it."""
        return self.announced and not self._checksum

    def opening(self) -> StreamMessage:
        """The message that announces it."""
        sizes = struct.pack(f"<{len(self.buffers)}Q", *(b.nbytes for b in self.buffers))
        return StreamMessage(StreamKind.OPEN, self.stream_id, sizes, self._flags)

    def next_chunk(self) -> StreamMessage:
        """The next chunk; `sent` moves on."""
        pieces = self.pieces()
        body, flags = OFFSET.pack(self.offset), 0
        if self._checksum:
            body, flags = OFFSET_AND_DIGEST.pack(self.offset, digest_of(pieces)), FLAG_CHECKSUM
        cost = message_cost(sum(piece.nbytes for piece in pieces))
        return StreamMessage(
            StreamKind.CHUNK, self.stream_id, body, flags, pieces, cost, self.tracker
        )

    def sent(self, message: StreamMessage) -> None:
        """``message`` went out."""
        if message.kind == StreamKind.OPEN:
            self.announced = True
        else:
            self.advance(sum(piece.nbytes for piece in message.buffers))

    def end(self, failure: str | None = None) -> None:
        """No more of it will be sent; libzmq may still read what was."""
        if not self.ended:
            self.ended = True
            self.failure = failure
            self.release()
            self.tracker.unhold()


class OutgoingStreams:
    """All streams to one peer. They take turns, a chunk each."""

    def __init__(self, credit: _core.Credit) -> None:
        self._credit = credit
        self._turns: deque[OutgoingStream] = deque()
        self._cancelled: deque[int] = deque()
        self._n_announced = 0
        self._last_id = 0
        self._unsent: StreamMessage | None = None

    @property
    def active(self) -> bool:
        """Whether there is anything left to send, now or later."""
        return bool(self._turns or self._cancelled)

    def open(
        self,
        buffers: Sequence[memoryview],
        tracker: _core.SendTracker,
        *,
        batch: bool = False,
        checksum: bool = False,
    ) -> OutgoingStream:
        """Queue a value.

        Args:
            buffers: One-dimensional views of bytes. They must not change until ``tracker``, which
                is held as long as more is to be sent, is done.
            batch: The one buffer is a batch frame.
            checksum: Send a digest with each chunk.
        """
        if len(buffers) > streams.MAX_BUFFERS:
            raise ConfigError(
                f"a value has {len(buffers) - 1} buffers, "
                f"a stream carries {streams.MAX_BUFFERS - 1}",
                hint="put them together, or send them in parts",
            )
        self._last_id += 1
        flags = FLAG_BATCH_CONTENT if batch else 0
        stream = OutgoingStream(
            self._last_id,
            list(buffers),
            tracker,
            streams.CHUNK_NBYTES,
            streams.CHUNK_PIECES,
            flags=flags,
            checksum=checksum,
        )
        self._turns.append(stream)
        return stream

    def next_message(self) -> StreamMessage | None:
        """What to send next, or None if it waits for credit or acceptance. Then call `sent`."""
        if self._unsent is None:
            self._unsent = self._choose()
        return self._unsent

    def _choose(self) -> StreamMessage | None:
        if self._cancelled:
            return StreamMessage(StreamKind.CANCEL, self._cancelled[0])
        stream = self._whose_turn()
        if stream is None:
            return None
        return stream.next_chunk() if stream.announced else stream.opening()

    def _whose_turn(self) -> OutgoingStream | None:
        for stream in self._turns:
            if not stream.announced:
                # In the order of their ids: only announced streams change places.
                if self._n_announced < streams.MAX_STREAMS:
                    return stream
            elif stream.accepted and self._credit.allows(stream.cost):
                return stream
        return None

    def sent(self, message: StreamMessage) -> None:
        """``message``, the last of `next_message`, went out."""
        self._unsent = None
        if message.kind == StreamKind.CANCEL:
            self._cancelled.popleft()
            return
        self._credit.used += message.cost
        stream = self._find(message.stream_id)
        if stream is None:
            return
        stream.sent(message)
        if message.kind == StreamKind.OPEN:
            self._n_announced += 1
            if not stream.nbytes:
                self._end(stream)
        else:
            self._after_chunk(stream)

    def _after_chunk(self, stream: OutgoingStream) -> None:
        if stream.offset == stream.nbytes:
            self._end(stream)
        else:
            self._turns.remove(stream)
            self._turns.append(stream)

    def next_departure(self) -> tuple[OutgoingStream, int] | None:
        """The stream that may send chunks by itself now, and how many of them in its turn.

        It is the stream of `next_message`; None if that is no mere chunk. Then call `departed`.
        """
        if self._unsent is not None or self._cancelled:
            return None
        stream = self._whose_turn()
        if stream is None or not stream.sends_itself:
            return None
        return stream, 1 if len(self._turns) > 1 else MANY

    def departed(self, stream: OutgoingStream) -> None:
        """Chunks of a stream went out, and were taken from the credit."""
        self._after_chunk(stream)

    def cancel(self, stream: OutgoingStream, reason: str) -> None:
        """Send no more of a stream; the receiver is told to drop what it has."""
        if not stream.ended:
            if stream.announced:
                self._cancelled.append(stream.stream_id)
            self._end(stream, reason)

    def abandon(self, reason: str) -> None:
        """The peer has gone: end every stream, tell nobody."""
        for stream in list(self._turns):
            self._end(stream, reason)
        self._cancelled.clear()
        self._unsent = None

    def receive(self, kind: StreamKind, stream_id: int, body: Sequence[int] = b"") -> None:
        """Take an ACCEPT or a REFUSE from the peer.

        Raises:
            ProtocolError: It is about a stream that never was.
        """
        if not 0 < stream_id <= self._last_id:
            raise ProtocolError(f"an answer about stream {stream_id}, which never was", offset=8)
        stream = self._find(stream_id)
        if kind == StreamKind.ACCEPT:
            if stream is not None:
                stream.accepted = True
            return
        # The receiver ignores the stream's chunks until it hears that no more will come.
        self._cancelled.append(stream_id)
        if stream is not None:
            self._end(stream, f"the peer refused it: {bytes(body).decode(errors='replace')}")

    def _find(self, stream_id: int) -> OutgoingStream | None:
        return next((s for s in self._turns if s.stream_id == stream_id), None)

    def _end(self, stream: OutgoingStream, failure: str | None = None) -> None:
        self._turns.remove(stream)
        self._n_announced -= stream.announced
        if self._unsent is not None and self._unsent.stream_id == stream.stream_id:
            self._unsent = None
        stream.end(failure)
