"""Streams: large values in chunks, fairly interleaved, as state machines that touch no socket.

One side's `OutgoingStreams` says what to send next; the other side's `IncomingStreams` takes what
came and gives whole values. Whoever owns the sockets carries the messages between them and counts
the bytes: a `Credit` bounds what is under way to a peer, an `Admission` what is received and not
yet taken. ``docs/wire-format.md`` has the messages.

Threads: one at a time; the caller sees to it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import xxhash

from zfast import _core
from zfast.errors import ConfigError, ProtocolError

#: Payload bytes in a chunk, at most. Measured: smaller ones cost wake-ups, larger ones the cache.
CHUNK_NBYTES = 1 << 20
#: Pieces of buffers in a chunk, at most.
CHUNK_PIECES = 1024
#: What may be under way to a peer before it has said anything.
INITIAL_CREDIT = 16 << 20
#: What each message takes from the credit beside its payload, so that tiny ones are bounded too.
MESSAGE_COST = 1024
#: A stream up to this starts at once; a larger one waits until the receiver has room for it.
EARLY_MAX_NBYTES = INITIAL_CREDIT
#: Streams that a peer may have open at a time.
MAX_STREAMS = 16
#: Streams that were refused and of which the peer has not said yet that it has stopped them.
MAX_IGNORED = 16 * MAX_STREAMS
#: Buffers of a streamed value, its header included.
MAX_BUFFERS = 1 << 18
#: Every buffer starts at a multiple of this in the receiver's memory.
ALIGNMENT = 64

FLAG_CHECKSUM = 2
FLAG_BATCH_CONTENT = 4

_OFFSET = struct.Struct("<Q")
_OFFSET_AND_DIGEST = struct.Struct("<QQ")


class StreamKind(IntEnum):
    """What a message of a stream means."""

    OPEN = 6
    CHUNK = 7
    ACCEPT = 8
    REFUSE = 9
    CANCEL = 10


@dataclass(slots=True)  # frozen ones are made four times slower
class StreamMessage:
    """One message to send; nobody changes it.

    Attributes:
        buffers: Slices of the value's buffers, lent; empty but for a chunk.
        cost: What it takes from the credit.
        tracker: Told when the buffers are let go of.
    """

    kind: StreamKind
    stream_id: int
    body: bytes = b""
    flags: int = 0
    buffers: list[memoryview] = field(default_factory=list)
    cost: int = 0
    tracker: _core.SendTracker | None = None


def message_cost(nbytes: int) -> int:
    """What a message with ``nbytes`` of payload takes from the credit."""
    return nbytes + MESSAGE_COST


class Credit:
    """How much may be under way to one peer; both figures count from when the two met.

    Attributes:
        used: Cost of everything sent so far.
        limit: What ``used`` may rise to; only ever raised.
    """

    __slots__ = ("limit", "used")

    def __init__(self) -> None:
        self.used = 0
        self.limit = INITIAL_CREDIT

    def allows(self, cost: int) -> bool:
        """Whether a message of this cost may be sent now."""
        return self.used + cost <= self.limit


# ---- sending -------------------------------------------------------------------------------


class OutgoingStream:
    """One value on its way out.

    Attributes:
        nbytes: Of all its buffers.
        offset: How many of them have been sent.
        ended: Nothing more will be sent: it went out whole, or ``failure`` says why it did not.
    """

    __slots__ = (
        "_checksum", "_index", "_position", "accepted", "announced", "buffers", "ended",
        "failure", "flags", "nbytes", "offset", "stream_id", "tracker",
    )  # fmt: skip

    def __init__(
        self,
        stream_id: int,
        buffers: Sequence[memoryview],
        tracker: _core.SendTracker,
        *,
        flags: int,
        checksum: bool,
    ) -> None:
        self.stream_id = stream_id
        self.buffers = list(buffers)
        self.nbytes = sum(buffer.nbytes for buffer in buffers)
        self.tracker = tracker
        self.flags = flags
        self.announced = False
        self.accepted = self.nbytes <= EARLY_MAX_NBYTES
        self.offset = 0
        self.ended = False
        self.failure: str | None = None
        self._checksum = checksum
        self._index = 0
        self._position = 0
        tracker.hold()

    def opening(self) -> StreamMessage:
        """The message that announces it."""
        sizes = struct.pack(f"<{len(self.buffers)}Q", *(b.nbytes for b in self.buffers))
        return StreamMessage(StreamKind.OPEN, self.stream_id, sizes, self.flags)

    def next_cost(self) -> int:
        """What its next chunk takes from the credit."""
        return message_cost(min(CHUNK_NBYTES, self.nbytes - self.offset))

    def next_chunk(self) -> StreamMessage:
        """The next chunk; `sent` moves on."""
        pieces: list[memoryview] = []
        nbytes, index, position = 0, self._index, self._position
        while nbytes < CHUNK_NBYTES and len(pieces) < CHUNK_PIECES and index < len(self.buffers):
            buffer = self.buffers[index]
            piece = buffer[position : position + CHUNK_NBYTES - nbytes]
            if piece.nbytes:
                pieces.append(piece)
            nbytes += piece.nbytes
            position += piece.nbytes
            if position == buffer.nbytes:
                index, position = index + 1, 0
        body, flags = _OFFSET.pack(self.offset), 0
        if self._checksum:
            body, flags = _OFFSET_AND_DIGEST.pack(self.offset, _digest(pieces)), FLAG_CHECKSUM
        return StreamMessage(
            StreamKind.CHUNK, self.stream_id, body, flags, pieces, message_cost(nbytes),
            self.tracker,
        )  # fmt: skip

    def sent(self, message: StreamMessage) -> None:
        """``message`` went out."""
        if message.kind == StreamKind.OPEN:
            self.announced = True
            return
        for piece in message.buffers:
            while self._position == self.buffers[self._index].nbytes:
                self._index, self._position = self._index + 1, 0
            self._position += piece.nbytes
            self.offset += piece.nbytes

    def end(self, failure: str | None = None) -> None:
        """No more of it will be sent; libzmq may still read what was."""
        if not self.ended:
            self.ended = True
            self.failure = failure
            self.buffers = []
            self.tracker.unhold()


class OutgoingStreams:
    """All streams to one peer. They take turns, a chunk each."""

    def __init__(self, credit: Credit) -> None:
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
        if len(buffers) > MAX_BUFFERS:
            raise ConfigError(
                f"a value has {len(buffers) - 1} buffers, a stream carries {MAX_BUFFERS - 1}",
                hint="put them together, or send them in parts",
            )
        self._last_id += 1
        flags = FLAG_BATCH_CONTENT if batch else 0
        stream = OutgoingStream(self._last_id, buffers, tracker, flags=flags, checksum=checksum)
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
        for stream in self._turns:
            if not stream.announced:
                # In the order of their ids: only announced streams change places.
                if self._n_announced < MAX_STREAMS:
                    return stream.opening()
            elif stream.accepted and self._credit.allows(stream.next_cost()):
                return stream.next_chunk()
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
        self._n_announced += message.kind == StreamKind.OPEN
        if stream.announced and stream.offset == stream.nbytes:
            self._end(stream)
        elif message.kind == StreamKind.CHUNK:
            self._turns.remove(stream)
            self._turns.append(stream)

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


# ---- receiving -----------------------------------------------------------------------------


class Admission:
    """Memory for values that are received and not yet taken, shared by the peers of one socket.

    Args:
        limit: Bytes. A value that is larger is refused; one that finds others in its place waits
            until they are taken.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._waiting: deque[tuple[IncomingStreams, IncomingStream]] = deque()

    def enter(self, streams: IncomingStreams, stream: IncomingStream) -> None:
        """Admit a stream, now or when there is room."""
        self._waiting.append((streams, stream))
        self._admit()

    def leave(self, stream: IncomingStream) -> None:
        """A stream's value was taken, or given up."""
        if stream.admitted:
            stream.admitted = False
            self.in_use -= stream.nbytes
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not stream)
        self._admit()

    def take(self, stream: IncomingStream) -> None:
        """Count a small stream, which waits for nobody."""
        stream.admitted = True
        self.in_use += stream.nbytes

    def _admit(self) -> None:
        while self._waiting and self.in_use + self._waiting[0][1].nbytes <= self.limit:
            streams, stream = self._waiting.popleft()
            self.take(stream)
            streams.accept(stream)


class IncomingStream:
    """One value on its way in."""

    __slots__ = (
        "_index", "_position", "admitted", "block", "flags", "nbytes", "received", "sizes",
        "starts", "stream_id",
    )  # fmt: skip

    def __init__(self, stream_id: int, sizes: Sequence[int], flags: int) -> None:
        self.stream_id = stream_id
        self.sizes = sizes
        self.flags = flags
        self.nbytes = sum(sizes)
        self.received = 0
        self.admitted = False
        self.block: _core.Block | None = None
        self.starts: list[int] = []
        self._index = 0
        self._position = 0

    def allocate(self) -> None:
        """Take memory for all of it. Raises MemoryError."""
        start = 0
        for size in self.sizes:
            self.starts.append(start)
            start += -(-size // ALIGNMENT) * ALIGNMENT
        self.block = _core.Block(max(1, start))

    def write(self, flags: int, body: Sequence[int], pieces: Sequence[memoryview]) -> None:
        """Copy one chunk to its place. Raises ProtocolError if it is not the next one."""
        layout = _OFFSET_AND_DIGEST if flags & FLAG_CHECKSUM else _OFFSET
        if len(body) != layout.size:
            raise ProtocolError(
                f"a chunk with a body of {len(body)} bytes, not {layout.size}", offset=24
            )
        offset, *digest = layout.unpack(bytes(body))
        if self.block is None:
            raise ProtocolError(f"a chunk of stream {self.stream_id} before it was accepted")
        if offset != self.received:
            what = "is missing" if offset > self.received else "came twice"
            raise ProtocolError(
                f"a chunk of stream {self.stream_id} {what}: this one starts at byte {offset}, "
                f"the next is {self.received}",
                offset=32,
            )
        if digest and digest[0] != _digest(pieces):
            raise ProtocolError(f"a chunk of stream {self.stream_id} is damaged", offset=40)
        if not any(piece.nbytes for piece in pieces):
            raise ProtocolError(f"a chunk of stream {self.stream_id} is empty")
        for piece in pieces:
            self._write_piece(piece)

    def _write_piece(self, piece: memoryview) -> None:
        while self._index < len(self.sizes) and self._position == self.sizes[self._index]:
            self._index, self._position = self._index + 1, 0
        left = self.sizes[self._index] - self._position if self._index < len(self.sizes) else 0
        if piece.nbytes > left:
            raise ProtocolError(
                f"a piece of {piece.nbytes} bytes in stream {self.stream_id}, where {left} are "
                "left of the buffer"
            )
        assert self.block is not None
        self.block.write(self.starts[self._index] + self._position, piece)
        self._position += piece.nbytes
        self.received += piece.nbytes


@dataclass(slots=True)
class StreamedValue:
    """One value that came whole.

    Attributes:
        buffers: Writable views of warm memory, nobody else's, each at a multiple of 64 bytes. With
            the last of them the memory goes back to the pool.
        is_batch: The one buffer is a batch frame.
        stream: What to give `Admission.leave` when the value is taken.
    """

    buffers: list[memoryview]
    is_batch: bool
    stream: IncomingStream


class IncomingStreams:
    """All streams from one peer.

    Attributes:
        replies: Messages for the peer; the caller sends them, in order, and takes them off.
    """

    def __init__(self, admission: Admission) -> None:
        self.replies: deque[StreamMessage] = deque()
        self._admission = admission
        self._open: dict[int, IncomingStream] = {}
        self._ignored: set[int] = set()
        self._last_id = 0

    @property
    def active(self) -> bool:
        """Whether a stream is under way."""
        return bool(self._open)

    def receive(
        self,
        kind: StreamKind,
        stream_id: int,
        flags: int,
        body: Sequence[int],
        buffers: Sequence[memoryview],
    ) -> StreamedValue | None:
        """Take an OPEN, a CHUNK or a CANCEL from the peer; the value that became whole by it.

        Raises:
            ProtocolError: A chunk is missing, repeated, torn or of no stream. Its stream is given
                up: its memory is free again, the peer is told, and what still comes of it is
                ignored. Other streams go on.
        """
        if kind == StreamKind.OPEN:
            return self._on_open(stream_id, flags, body)
        if kind == StreamKind.CANCEL:
            self._ignored.discard(stream_id)
            self._drop(stream_id)
            return None
        stream = self._open.get(stream_id)
        if stream is None:
            if stream_id in self._ignored:
                return None
            raise ProtocolError(f"a chunk of stream {stream_id}, which is not open", offset=8)
        try:
            stream.write(flags, body, buffers)
        except ProtocolError as error:
            self._refuse(stream_id, error.message)
            raise
        return self._finish(stream) if stream.received == stream.nbytes else None

    def accept(self, stream: IncomingStream) -> None:
        """Called by the admission: the peer may send it."""
        try:
            stream.allocate()
        except MemoryError as error:
            self._refuse(stream.stream_id, str(error))
            return
        self.replies.append(StreamMessage(StreamKind.ACCEPT, stream.stream_id))

    def refuse_all(self, reason: str) -> None:
        """Give up what is under way and tell the peer why."""
        for stream_id in list(self._open):
            self._refuse(stream_id, reason)

    def abandon(self) -> None:
        """The peer has gone: drop what came of its values."""
        for stream_id in list(self._open):
            self._drop(stream_id)
        self.replies.clear()

    def _on_open(self, stream_id: int, flags: int, body: Sequence[int]) -> StreamedValue | None:
        if stream_id <= self._last_id:
            raise ProtocolError(f"stream {stream_id} is opened after {self._last_id}", offset=8)
        if len(body) % 8 or not 0 < len(body) // 8 <= MAX_BUFFERS:
            raise ProtocolError(f"a stream is opened with {len(body)} bytes of sizes", offset=24)
        if len(self._open) >= MAX_STREAMS or len(self._ignored) >= MAX_IGNORED:
            raise ProtocolError(f"more than {MAX_STREAMS} streams are open at a time")
        self._last_id = stream_id
        sizes = struct.unpack(f"<{len(body) // 8}Q", bytes(body))
        stream = self._open[stream_id] = IncomingStream(stream_id, sizes, flags)
        if stream.nbytes > self._admission.limit:
            self._refuse(
                stream_id,
                f"it has {stream.nbytes} bytes, this side receives {self._admission.limit} at most",
            )
        elif stream.nbytes > EARLY_MAX_NBYTES:
            self._admission.enter(self, stream)
        else:
            self._admission.take(stream)
            try:
                stream.allocate()
            except MemoryError as error:
                self._refuse(stream_id, str(error))
                return None
            if not stream.nbytes:
                return self._finish(stream)
        return None

    def _finish(self, stream: IncomingStream) -> StreamedValue:
        del self._open[stream.stream_id]
        assert stream.block is not None
        whole = memoryview(stream.block)
        stream.block = None
        buffers = [
            whole[start : start + size]
            for start, size in zip(stream.starts, stream.sizes, strict=True)
        ]
        return StreamedValue(buffers, bool(stream.flags & FLAG_BATCH_CONTENT), stream)

    def _refuse(self, stream_id: int, reason: str) -> None:
        self._drop(stream_id)
        self._ignored.add(stream_id)
        self.replies.append(StreamMessage(StreamKind.REFUSE, stream_id, reason.encode()[:1000]))

    def _drop(self, stream_id: int) -> None:
        stream = self._open.pop(stream_id, None)
        if stream is not None:
            stream.block = None
            self._admission.leave(stream)


def _digest(pieces: Sequence[memoryview]) -> int:
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()
