"""The wire format in plain Python: the specification that the compiled core is tested against.

The plain core (``zfast._plain``) is built on it. See ``docs/wire-format.md``.
All integers are little-endian.

A *message* is a header frame and, for each buffer that is not inline, one frame::

    offset  size  field
    0       4     magic, b"ZFST"
    4       1     protocol version
    5       1     kind
    6       2     flags
    8       8     request id
    16      4     n, number of buffers
    20      4     zero
    24      8     nbytes of the body
    32      8·n   nbytes of each buffer; bit 63 set: it is inline
            …     body
            …     inline buffers, each at a multiple of 64 bytes from the start of the frame

A *batch* is one frame; its flags have ``FLAG_BATCH``, its n is the number of payloads, its body
is empty, and after the first 32 bytes follow n+1 offsets of 4 bytes and the payloads::

    32      4·(n+1)  offsets into the data, from 0 to its length, never decreasing
            …        the payloads, end to end, from the next multiple of 8
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from zfast.errors import ConfigError, FrameTooLargeError, ProtocolError, VersionMismatchError

MAGIC = b"ZFST"
WIRE_VERSION = 2
HEADER_NBYTES = 32
ALIGNMENT = 64
FLAG_BATCH = 1
#: A buffer below this goes inline in the header frame …
INLINE_MAX_NBYTES = 64 * 1024
#: … as long as all inline buffers together stay below this.
INLINE_TOTAL_MAX_NBYTES = 1024 * 1024
MAX_BUFFERS = 1 << 20
MAX_BATCH_NBYTES = (1 << 32) - 1

_HEADER = struct.Struct("<4sBBHQIIQ")
_INLINE = 1 << 63


@dataclass(frozen=True)
class Message:
    """One decoded message. ``buffers`` are read-only views in the order they were sent."""

    kind: int
    flags: int
    request_id: int
    body: memoryview
    buffers: list[memoryview] = field(default_factory=list)


def _aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


def encode_message(
    kind: int,
    body: bytes,
    buffers: Sequence[object] = (),
    *,
    flags: int = 0,
    request_id: int = 0,
    inline_max_nbytes: int = INLINE_MAX_NBYTES,
) -> list[memoryview]:
    """Build the frames of one message. Buffers with a frame of their own are not copied."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]  # type: ignore[arg-type]
    if len(views) > MAX_BUFFERS:
        raise ConfigError(f"a message carries at most {MAX_BUFFERS} buffers, not {len(views)}")
    table: list[int] = []
    frames: list[memoryview] = []
    inline: list[memoryview] = []
    inline_nbytes = 0
    for view in views:
        if view.nbytes < inline_max_nbytes and (
            inline_nbytes + view.nbytes <= INLINE_TOTAL_MAX_NBYTES
        ):
            table.append(view.nbytes | _INLINE)
            inline.append(view)
            inline_nbytes += view.nbytes
        else:
            table.append(view.nbytes)
            frames.append(view)
    head = bytearray(
        _HEADER.pack(MAGIC, WIRE_VERSION, kind, flags, request_id, len(views), 0, len(body))
    )
    head += struct.pack(f"<{len(table)}Q", *table)
    head += body
    for view in inline:
        head += bytes(_aligned(len(head)) - len(head))
        head += view
    return [memoryview(bytes(head)), *frames]


def decode_header(frame: memoryview) -> tuple[int, int, int, int, int]:
    """Kind, flags, request id, n and the body's nbytes. Raises ProtocolError: it is not ours."""
    if frame.nbytes < HEADER_NBYTES:
        raise ProtocolError(
            f"the header frame has {frame.nbytes} bytes, fewer than {HEADER_NBYTES}",
            offset=frame.nbytes,
        )
    magic, version, kind, flags, request_id, n, zero, body_nbytes = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise ProtocolError(f"not a zfast frame: its magic is {magic!r}, not {MAGIC!r}")
    if version != WIRE_VERSION:
        raise VersionMismatchError(
            f"the peer speaks wire version {version}, this process speaks {WIRE_VERSION}",
            offset=4,
            hint="install the same zfast version on both sides",
        )
    if zero:
        raise ProtocolError("reserved header bytes are not zero", offset=20)
    return kind, flags, request_id, n, body_nbytes


def decode_message(frames: Sequence[object]) -> Message:
    """Take one message apart.

    Raises:
        ProtocolError: The frames are not one whole message of ours.
    """
    views = [memoryview(frame).cast("B").toreadonly() for frame in frames]  # type: ignore[arg-type]
    if not views:
        raise ProtocolError("the message has no frame")
    head = views[0]
    kind, flags, request_id, n, body_nbytes = decode_header(head)
    if flags & FLAG_BATCH:
        raise ProtocolError("a batch where a message was expected", offset=6)
    if n > MAX_BUFFERS:
        raise FrameTooLargeError(f"{n} buffers announced, the limit is {MAX_BUFFERS}", offset=16)
    body_start = HEADER_NBYTES + 8 * n
    if body_start > head.nbytes or body_nbytes > head.nbytes - body_start:
        raise ProtocolError(
            f"the header announces {n} buffers and a body of {body_nbytes} bytes, "
            f"the frame has {head.nbytes} bytes",
            offset=24,
        )
    position = body_start + body_nbytes
    buffers: list[memoryview] = []
    next_frame = 1
    for index, entry in enumerate(struct.unpack_from(f"<{n}Q", head, HEADER_NBYTES)):
        nbytes = entry & ~_INLINE
        table_offset = HEADER_NBYTES + 8 * index
        if entry & _INLINE:
            position = _aligned(position)
            if position > head.nbytes or nbytes > head.nbytes - position:
                raise ProtocolError(
                    f"inline buffer {index} of {nbytes} bytes ends past the frame",
                    offset=table_offset,
                )
            buffers.append(head[position : position + nbytes])
            position += nbytes
            continue
        if next_frame >= len(views):
            raise ProtocolError(
                f"buffer {index} has no frame: the message has only {len(views)}",
                frame_index=next_frame,
                offset=table_offset,
            )
        if views[next_frame].nbytes != nbytes:
            raise ProtocolError(
                f"frame {next_frame} has {views[next_frame].nbytes} bytes, announced {nbytes}",
                frame_index=next_frame,
                offset=table_offset,
            )
        buffers.append(views[next_frame])
        next_frame += 1
    if position != head.nbytes:
        raise ProtocolError(
            f"{head.nbytes - position} bytes left over in the header frame", offset=position
        )
    if next_frame != len(views):
        raise ProtocolError(f"{len(views) - next_frame} frames left over", frame_index=next_frame)
    body = head[body_start : body_start + body_nbytes]
    return Message(kind, flags, request_id, body, buffers)


def batch_data_start(n: int) -> int:
    """Where the data of a batch of ``n`` payloads begins in its frame."""
    return _aligned(HEADER_NBYTES + 4 * (n + 1), 8)


def pack(payloads: Iterable[object], *, kind: int = 0, request_id: int = 0) -> bytes:
    """Copy many payloads, one after another, into the bytes of one batch frame."""
    views = [memoryview(payload).cast("B") for payload in payloads]  # type: ignore[arg-type]
    offsets = [0]
    for view in views:
        offsets.append(offsets[-1] + view.nbytes)
    if offsets[-1] > MAX_BATCH_NBYTES or len(views) > MAX_BATCH_NBYTES:
        raise ConfigError(f"a batch holds at most {MAX_BATCH_NBYTES} bytes, not {offsets[-1]}")
    head = _HEADER.pack(MAGIC, WIRE_VERSION, kind, FLAG_BATCH, request_id, len(views), 0, 0)
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    start = batch_data_start(len(views))
    return b"".join([head, table, bytes(start - len(head) - len(table)), *views])


def unpack(frame: object) -> list[memoryview]:
    """Split one batch frame into read-only views of its payloads, in the order packed.

    Raises:
        ProtocolError: The frame is not one whole batch of ours.
    """
    view = memoryview(frame).cast("B").toreadonly()  # type: ignore[arg-type]
    _, flags, _, n, body_nbytes = decode_header(view)
    if not flags & FLAG_BATCH:
        raise ProtocolError("a message where a batch was expected", offset=6)
    if body_nbytes:
        raise ProtocolError("a batch with a body", offset=24)
    start = batch_data_start(n)
    if start > view.nbytes:
        raise ProtocolError(f"{n} payloads announced, the frame has {view.nbytes} bytes", offset=16)
    offsets = struct.unpack_from(f"<{n + 1}I", view, HEADER_NBYTES)
    if offsets[0] != 0 or offsets[-1] != view.nbytes - start:
        raise ProtocolError(
            f"the payloads span {offsets[0]} to {offsets[-1]}, "
            f"the frame holds {view.nbytes - start} bytes of data",
            offset=HEADER_NBYTES,
        )
    for index in range(n):
        if offsets[index] > offsets[index + 1]:
            raise ProtocolError(
                f"payload {index} ends before it starts", offset=HEADER_NBYTES + 4 * index
            )
    return [view[start + a : start + b] for a, b in pairwise(offsets)]
