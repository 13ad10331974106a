"""Streams on their way in: chunks are copied to their place in warm memory, values come out whole.

Threads: one at a time; the caller sees to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zfast import _core
from zfast.errors import ProtocolError
from zfast.transport import streams
from zfast.transport.streams import (
    FLAG_BATCH_CONTENT,
    FLAG_CHECKSUM,
    OFFSET,
    OFFSET_AND_DIGEST,
    StreamKind,
    StreamMessage,
    digest_of,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer


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


class IncomingStream(_core.Landing):
    """One value on its way in: arguments as ``_core.Landing``.

    Attributes:
        admitted: The admission counts it.
    """

    __slots__ = ("admitted",)

    def __init__(self, stream_id: int, sizes: Buffer, flags: int = 0) -> None:
        self.admitted = False

    def take_chunk(self, flags: int, body: Sequence[int], pieces: Sequence[memoryview]) -> None:
        """Copy one chunk to its place. Raises ProtocolError if it is not the next one."""
        layout = OFFSET_AND_DIGEST if flags & FLAG_CHECKSUM else OFFSET
        if len(body) != layout.size:
            raise ProtocolError(
                f"a chunk with a body of {len(body)} bytes, not {layout.size}", offset=24
            )
        offset, *digest = layout.unpack(bytes(body))
        self.expect(offset)
        if digest and digest[0] != digest_of(pieces):
            raise ProtocolError(f"a chunk of stream {self.stream_id} is damaged", offset=40)
        self.write(pieces)


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
        open: Those under way, by their numbers.
        replies: Messages for the peer; the caller sends them, in order, and takes them off.
    """

    def __init__(self, admission: Admission) -> None:
        self.replies: deque[StreamMessage] = deque()
        self._admission = admission
        self.open: dict[int, IncomingStream] = {}
        self._ignored: set[int] = set()
        self._last_id = 0

    @property
    def active(self) -> bool:
        """Whether a stream is under way."""
        return bool(self.open)

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
        stream = self.open.get(stream_id)
        if stream is None:
            if stream_id in self._ignored:
                return None
            raise ProtocolError(f"a chunk of stream {stream_id}, which is not open", offset=8)
        try:
            stream.take_chunk(flags, body, buffers)
        except ProtocolError as error:
            self._refuse(stream_id, error.message)
            raise
        return self.landed(stream_id)

    def landed(self, stream_id: int) -> StreamedValue | None:
        """Something came of an open stream, and is where it belongs; the value if it is whole."""
        stream = self.open[stream_id]
        if not stream.whole:
            return None
        del self.open[stream_id]
        return StreamedValue(stream.take(), bool(stream.flags & FLAG_BATCH_CONTENT), stream)

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
        for stream_id in list(self.open):
            self._refuse(stream_id, reason)

    def abandon(self) -> None:
        """The peer has gone: drop what came of its values."""
        for stream_id in list(self.open):
            self._drop(stream_id)
        self.replies.clear()

    def _on_open(self, stream_id: int, flags: int, body: Sequence[int]) -> StreamedValue | None:
        if stream_id <= self._last_id:
            raise ProtocolError(f"stream {stream_id} is opened after {self._last_id}", offset=8)
        if len(body) % 8 or not 0 < len(body) // 8 <= streams.MAX_BUFFERS:
            raise ProtocolError(f"a stream is opened with {len(body)} bytes of sizes", offset=24)
        if len(self.open) >= streams.MAX_STREAMS or len(self._ignored) >= streams.MAX_IGNORED:
            raise ProtocolError(f"more than {streams.MAX_STREAMS} streams are open at a time")
        self._last_id = stream_id
        stream = self.open[stream_id] = IncomingStream(stream_id, bytes(body), flags)
        if stream.nbytes > self._admission.limit:
            self._refuse(
                stream_id,
                f"it has {stream.nbytes} bytes, this side receives {self._admission.limit} at most",
            )
        elif stream.nbytes > streams.EARLY_MAX_NBYTES:
            self._admission.enter(self, stream)
        else:
            self._admission.take(stream)
            try:
                stream.allocate()
            except MemoryError as error:
                self._refuse(stream_id, str(error))
                return None
            return self.landed(stream_id)  # of an empty one, nothing more comes
        return None

    def _refuse(self, stream_id: int, reason: str) -> None:
        self._drop(stream_id)
        self._ignored.add(stream_id)
        self.replies.append(StreamMessage(StreamKind.REFUSE, stream_id, reason.encode()[:1000]))

    def _drop(self, stream_id: int) -> None:
        stream = self.open.pop(stream_id, None)
        if stream is not None:
            stream.release()
            self._admission.leave(stream)
