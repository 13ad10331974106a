"""Streams: large values in chunks, fairly interleaved. What both sides of them agree on.

One side's ``OutgoingStreams`` says what to send next; the other side's ``IncomingStreams`` takes
what came and gives whole values: state machines that touch no socket. Whoever owns the sockets
carries the messages between them and counts the bytes: a `Credit` bounds what is under way to a
peer, an ``Admission`` what is received and not yet taken. ``docs/wire-format.md`` has the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import xxhash

from zfast import _core

#: Payload bytes in a chunk, at most. Measured: smaller ones cost wake-ups, larger ones the cache.
CHUNK_NBYTES = 1 << 20
#: Pieces of buffers in a chunk, at most.
CHUNK_PIECES = 1024
#: What may be under way to a peer before it has said anything.
INITIAL_CREDIT = 16 << 20
#: What each message takes from the credit beside its payload, so that tiny ones are bounded too.
MESSAGE_COST = _core.MESSAGE_COST
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

OFFSET = struct.Struct("<Q")
OFFSET_AND_DIGEST = struct.Struct("<QQ")


class StreamKind(IntEnum):
    """What a message of a stream means."""

    OPEN = 6
    CHUNK = _core.KIND_CHUNK
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


class Credit(_core.Credit):
    """How much may be under way to one peer that has said nothing yet."""

    __slots__ = ()

    def __init__(self) -> None:
        self.used = 0
        self.limit = INITIAL_CREDIT


def digest_of(pieces: Sequence[memoryview]) -> int:
    """The digest of a chunk: XXH3, 64 bits, of all its pieces."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()
