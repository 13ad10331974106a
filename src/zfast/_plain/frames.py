"""Messages and batches, and how many payloads make a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from zfast import _fallback
from zfast._fallback import FLAG_BATCH, HEADER_NBYTES, INLINE_MAX_NBYTES, MAX_BATCH_NBYTES
from zfast.errors import ConfigError

DEFAULT_BATCH_NBYTES = 1 << 20
DEFAULT_BATCH_COUNT = 65536


@dataclass(slots=True)
class Message:
    """One received message; see ``_core.Message``."""

    kind: int
    flags: int
    request_id: int
    body: bytes | memoryview
    buffers: list[memoryview] = field(default_factory=list)
    routing_id: bytes | None = None
    source_fd: int = -1

    @property
    def nbytes(self) -> int:
        """Of the body and the buffers together."""
        return len(self.body) + sum(buffer.nbytes for buffer in self.buffers)


class Batch(Sequence[memoryview]):
    """Many payloads in one frame; see ``_core.Batch``."""

    __slots__ = ("_payloads", "_view", "kind", "request_id", "routing_id")

    def __init__(self, frame: object) -> None:
        self._view = _bytes_view(frame)
        self._payloads = _fallback.unpack(self._view)
        self.kind, _, self.request_id, _, _ = _fallback.decode_header(self._view)
        self.routing_id: bytes | None = None

    def __len__(self) -> int:
        return len(self._payloads)

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._payloads)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        try:
            return self._payloads[index]
        except IndexError:
            raise IndexError(f"payload {index} of a batch of {len(self)}") from None

    def to_bytes_list(self) -> list[bytes]:
        """Copy every payload into a ``bytes`` object of its own."""
        return [bytes(payload) for payload in self._payloads]

    @property
    def nbytes(self) -> int:
        """Of all payloads together."""
        return self.data.nbytes

    @property
    def data(self) -> memoryview:
        """The payloads end to end."""
        return self._view[_fallback.batch_data_start(len(self)) :]

    @property
    def offsets(self) -> memoryview[int]:
        """Payload i is ``data[offsets[i]:offsets[i + 1]]``."""
        return self._view[HEADER_NBYTES : HEADER_NBYTES + 4 * (len(self) + 1)].cast("I")


def decode_message(frames: Sequence[object]) -> Message:
    """Take one message apart; see ``_core.decode_message``."""
    views = [_bytes_view(frame) for frame in frames]
    if len(views) > 0 and views[0].nbytes <= INLINE_TOTAL:
        # A copy brings inline buffers to an aligned address, as the compiled core does.
        views[0] = memoryview(bytes(views[0]))
    message = _fallback.decode_message(views)
    body: bytes | memoryview = message.body
    if not message.buffers and len(body) <= INLINE_MAX_NBYTES - HEADER_NBYTES:
        body = bytes(body)
    return Message(message.kind, message.flags, message.request_id, body, message.buffers)


#: Header frames above this have a large body, and are not copied for the sake of inline buffers.
INLINE_TOTAL = 2 * _fallback.INLINE_TOTAL_MAX_NBYTES


def unpack(frame: object) -> Batch:
    """Split one batch frame into its payloads; see ``_core.unpack``."""
    return Batch(frame)


def is_batch(views: Sequence[memoryview]) -> bool:
    """Whether the frames are those of a batch."""
    return len(views) == 1 and views[0].nbytes >= HEADER_NBYTES and bool(views[0][6] & FLAG_BATCH)


def pack(payloads: Sequence[Any], *, kind: int = 0, request_id: int = 0) -> bytes:
    """Copy many payloads into the bytes of one batch frame; see ``_core.pack``."""
    return _fallback.pack(payloads, kind=kind, request_id=request_id)


def plan_batch(
    payloads: list[Any],
    start: int = 0,
    *,
    max_nbytes: int = DEFAULT_BATCH_NBYTES,
    max_count: int = DEFAULT_BATCH_COUNT,
) -> tuple[int, int]:
    """How many payloads make the next batch, and their bytes; see ``_core.plan_batch``."""
    if not 0 <= start < len(payloads):
        raise ConfigError(f"start {start} is outside a list of {len(payloads)} payloads")
    if max_count < 1:
        raise ConfigError(f"max_count must be at least 1, not {max_count}")
    total = 0
    stop = min(len(payloads), start + max_count)
    for index in range(start, stop):
        nbytes = memoryview(payloads[index]).nbytes
        if nbytes > MAX_BATCH_NBYTES:
            if index > start:
                return index - start, total
            raise ConfigError(
                f"payload {index} has {nbytes} bytes, a batch holds at most {MAX_BATCH_NBYTES}",
                hint="send it by itself with send()",
            )
        if index > start and total + nbytes > min(max_nbytes, MAX_BATCH_NBYTES):
            return index - start, total
        total += nbytes
    return stop - start, total


def _bytes_view(frame: object) -> memoryview:
    return memoryview(frame).cast("B").toreadonly()  # type: ignore[arg-type]
