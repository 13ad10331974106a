"""The two ends of one stream: buffers cut into chunks, and chunks copied to their place."""

from __future__ import annotations

import struct
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zmq

from zfast._plain.accounts import MESSAGE_COST, Account
from zfast._plain.sockets import send_message
from zfast._plain.tracker import SendTracker
from zfast.errors import ProtocolError

KIND_CHUNK = 7
ALIGNMENT = 64
MAX_NBYTES = (1 << 64) - 1
MAX_ALLOCATED_NBYTES = 1 << 62


@dataclass(slots=True)
class _Cursor:
    """A place in a stream: of which buffer, where in it, where that starts, where in the whole."""

    index: int = 0
    position: int = 0
    start: int = 0
    offset: int = 0


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class _Books:
    """What is under values that are alive or on their way; changed from any thread."""

    lock = threading.Lock()
    in_use_nbytes = 0
    n_mapped = 0

    @classmethod
    def count(cls, nbytes: int) -> None:
        with cls.lock:
            cls.in_use_nbytes += nbytes
            cls.n_mapped += nbytes > 0


def pool_statistics() -> tuple[int, int, int, int]:
    """As ``_core``'s, but nothing is retained or reused: there is no pool."""
    return 0, _Books.in_use_nbytes, 0, _Books.n_mapped


def _aligned_memory(nbytes: int) -> memoryview:
    """Uninitialised memory at a multiple of 64."""
    if nbytes > MAX_ALLOCATED_NBYTES:
        raise MemoryError(f"no memory to receive a value of {nbytes} bytes")
    whole = np.empty(nbytes + ALIGNMENT, np.uint8)
    _Books.count(nbytes)
    weakref.finalize(whole, _Books.count, -nbytes)
    start = -whole.ctypes.data % ALIGNMENT
    return whole.data[start : start + nbytes]


class Landing:
    """Where the bytes of one stream go; see ``_core.Landing``."""

    def __new__(cls, stream_id: int, sizes: Any, flags: int = 0) -> Landing:
        """Make it ready without a constructor: subclasses have their own."""
        landing = super().__new__(cls)
        raw = bytes(sizes)
        landing.stream_id = stream_id
        landing.flags = flags
        landing.routing_id = None
        landing._sizes = struct.unpack_from(f"<{len(raw) // 8}Q", raw)
        landing.nbytes = min(sum(landing._sizes), MAX_NBYTES)
        landing._memory = None
        landing._next = _Cursor()
        return landing

    stream_id: int
    flags: int
    routing_id: bytes | None
    nbytes: int
    _sizes: tuple[int, ...]
    _memory: memoryview | None
    _next: _Cursor

    @property
    def received(self) -> int:
        """How many bytes have come."""
        return self._next.offset

    @property
    def whole(self) -> bool:
        """Whether all has come."""
        return self._next.offset == self.nbytes

    def allocate(self) -> None:
        """Take memory for all of it. Raises MemoryError: there is not so much."""
        self._memory = _aligned_memory(max(1, sum(map(_aligned, self._sizes))))

    def expect(self, offset: int) -> None:
        """See that a chunk is the next one. Raises ProtocolError: it is not."""
        if self._memory is None:
            raise ProtocolError(f"a chunk of stream {self.stream_id} before it was accepted")
        if offset != self._next.offset:
            what = "is missing" if offset > self._next.offset else "came twice"
            raise ProtocolError(
                f"a chunk of stream {self.stream_id} {what}: this one starts at byte {offset}, "
                f"the next is {self._next.offset}",
                offset=32,
            )

    def write(self, pieces: Iterable[Any]) -> None:
        """Copy the pieces of the next chunk to their place. Raises ProtocolError: cut wrongly."""
        if self._memory is None:
            raise ProtocolError(f"a chunk of stream {self.stream_id} before it was accepted")
        at = replace(self._next)
        for piece in pieces:
            view = memoryview(piece)
            while at.index < len(self._sizes) and at.position == self._sizes[at.index]:
                at.start += _aligned(self._sizes[at.index])
                at.index += 1
                at.position = 0
            left = self._sizes[at.index] - at.position if at.index < len(self._sizes) else 0
            if view.nbytes > left:
                raise ProtocolError(
                    f"a piece of {view.nbytes} bytes in stream {self.stream_id}, where "
                    f"{left} are left of the buffer"
                )
            place = at.start + at.position
            self._memory[place : place + view.nbytes] = view
            at.position += view.nbytes
            at.offset += view.nbytes
        if at.offset == self._next.offset:
            raise ProtocolError(f"a chunk of stream {self.stream_id} is empty")
        self._next = at

    def land(self, peer: Account, offset: int, pieces: list[memoryview]) -> bool:
        """Copy the next chunk to its place and count it, if it is right; False: nothing was done.

        Args:
            peer: Who sent it.
        """
        nbytes = sum(piece.nbytes for piece in pieces)
        if not peer.may_arrive(nbytes):
            return False
        try:
            self.expect(offset)
            self.write(pieces)
        except ProtocolError:
            return False
        peer.count_arrived(nbytes)
        peer.count_consumed(nbytes)
        return True

    def take(self) -> list[memoryview]:
        """The buffers, writable. Raises ProtocolError: not all has come."""
        if self._memory is None or not self.whole:
            raise ProtocolError(
                f"{self._next.offset} of {self.nbytes} bytes of stream {self.stream_id} came"
            )
        buffers, start = [], 0
        for nbytes in self._sizes:
            buffers.append(self._memory[start : start + nbytes])
            start += _aligned(nbytes)
        self._memory = None
        return buffers

    def release(self) -> None:
        """Give the memory back."""
        self._memory = None


class Departure:
    """The bytes of one stream on their way out; see ``_core.Departure``."""

    def __new__(
        cls,
        stream_id: int,
        buffers: list[memoryview],
        tracker: SendTracker,
        max_nbytes: int,
        max_pieces: int,
        **_: object,
    ) -> Departure:
        """Make it ready without a constructor: subclasses have their own."""
        departure = super().__new__(cls)
        departure.stream_id = stream_id
        departure.buffers = buffers
        departure.tracker = tracker
        departure.nbytes = sum(buffer.nbytes for buffer in buffers)
        departure._max_nbytes = max_nbytes
        departure._max_pieces = max_pieces
        departure._next = _Cursor()
        return departure

    stream_id: int
    buffers: list[memoryview]
    tracker: SendTracker
    nbytes: int
    _max_nbytes: int
    _max_pieces: int
    _next: _Cursor

    @property
    def offset(self) -> int:
        """How many bytes went out."""
        return self._next.offset

    @property
    def cost(self) -> int:
        """What the next chunk takes from the credit, at most."""
        return min(self._max_nbytes, self.nbytes - self._next.offset) + MESSAGE_COST

    def _cut(self, at: _Cursor, room: int) -> int:
        """The next piece's length, at most ``room``, moved on past it; 0 at the end."""
        while at.index < len(self.buffers) and at.position == self.buffers[at.index].nbytes:
            at.index += 1
            at.position = 0
        if at.index >= len(self.buffers):
            return 0
        nbytes = min(room, self.buffers[at.index].nbytes - at.position)
        at.position += nbytes
        at.offset += nbytes
        return nbytes

    def pieces(self) -> list[memoryview]:
        """The pieces of the next chunk. Then `advance` by what they have."""
        at = replace(self._next)
        pieces: list[memoryview] = []
        while len(pieces) < self._max_pieces:
            nbytes = self._cut(at, self._max_nbytes - (at.offset - self._next.offset))
            if not nbytes:
                break
            pieces.append(self.buffers[at.index][at.position - nbytes : at.position])
        return pieces

    def advance(self, nbytes: int) -> None:
        """A chunk of ``nbytes`` went out."""
        while nbytes:
            cut = self._cut(self._next, nbytes)
            if not cut:
                raise ValueError("more went out than there was")
            nbytes -= cut

    def send(self, socket: zmq.Socket[Any], peer: Account, max_count: int) -> bool:
        """Send the next chunks, as far as the peer's credit allows; False: no room for one."""
        for _ in range(max_count):
            pieces = self.pieces()
            if not pieces or not peer.credit.allows(self.cost):
                break
            nbytes = sum(piece.nbytes for piece in pieces)
            sent = send_message(
                socket,
                KIND_CHUNK,
                struct.pack("<Q", self._next.offset),
                pieces,
                request_id=self.stream_id,
                routing_id=peer.routing_id,
                tracker=self.tracker,
            )
            if not sent:
                return False
            peer.credit.used += nbytes + MESSAGE_COST
            self.advance(nbytes)
        return True

    def release(self) -> None:
        """Let go of the buffers: no more of it will go out."""
        self.buffers = []
