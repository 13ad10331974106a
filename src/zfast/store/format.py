"""One stored object, one file: how it is laid out, and how it is read back in place.

All integers are little-endian; ``docs/store-format.md`` says the same in more words::

    offset  size  field
    0       8     magic, b"\\x89ZFO\\r\\n\\x1a\\n"
    8       2     format version: 1, or 2 if a buffer is compressed
    10      2     flags; FLAG_PAYLOAD: the object holds a payload
    12      4     n, number of buffers
    16      8     nbytes of the whole file
    24      8     nbytes of the content
    32      8     nbytes of the payload's header
    40      16    token of the ticket that the content names, or zeros
    56      8     xxh3_64 of everything before the first buffer, these 8 bytes taken as zero
    64      24·n  for each buffer: offset in the file, nbytes there, xxh3_64 of them;
            40·n  in version 2 also: nbytes of the buffer itself, its codec
            …     content: what the caller stores beside the payload
            …     header of the payload
            …     the buffers, each at a multiple of 64 bytes, zeros between them

Reading checks the lengths and the checksum at 56 every time; the buffers' own checksums cost a
pass over the data and are checked by `StoredObject.verify` only, or before decompression.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import xxhash

from zfast.codec import Payload
from zfast.errors import ObjectCorruptError, UnknownObjectError
from zfast.store.compression import MAX_EXPANSION, RAW, decompress

MAGIC = b"\x89ZFO\r\n\x1a\n"
#: The newest format version this module reads.
FORMAT_VERSION = 2
FLAG_PAYLOAD = 1
HEADER_NBYTES = 64
ALIGNMENT = 64
TOKEN_NBYTES = 16
NO_TOKEN = bytes(TOKEN_NBYTES)

_FIXED = struct.Struct("<8sHHIQQQ16sQ")
_ENTRIES = {1: struct.Struct("<QQQ"), 2: struct.Struct("<QQQQQ")}
_CHECKSUM_START = 56

#: Gives a buffer's compressed form and its codec, or the buffer itself and `RAW`.
Compress = Callable[[memoryview], tuple[memoryview, int]]


class StoredBuffer(NamedTuple):
    """Where a buffer is in the file, and what it is there."""

    offset: int
    stored_nbytes: int
    checksum: int
    nbytes: int
    codec: int


@dataclass(frozen=True)
class Head:
    """What a file says before its first buffer: lengths in bytes, and where things are."""

    version: int
    flags: int
    n_buffers: int
    nbytes: int
    content_start: int
    header_start: int
    header_end: int
    token: bytes
    checksum: int

    @property
    def data_start(self) -> int:
        """Where the first buffer begins; without any, the end of the file."""
        return _aligned(self.header_end) if self.n_buffers else self.header_end


class StoredObject:
    """An object read from a store.

    Attributes:
        content: The bytes stored beside the payload.
        token: The token of the ticket that the content names, or zeros.
        nbytes: Length of the whole object in bytes, as it is stored.
        name: Where it is from, for messages.
        version: Its format version.
        buffers: Where its buffers are.
        has_payload: Whether a value is stored, or content alone.
    """

    def __init__(
        self, data: memoryview, head: Head, buffers: tuple[StoredBuffer, ...], name: str
    ) -> None:
        """Take what `parse` found."""
        self.content = data[head.content_start : head.header_start]
        self.token = head.token
        self.nbytes = head.nbytes
        self.name = name
        self.version = head.version
        self.buffers = buffers
        self.has_payload = bool(head.flags & FLAG_PAYLOAD)
        self._header = data[head.header_start : head.header_end]
        self._data = data

    @cached_property
    def payload(self) -> Payload | None:
        """The stored value, or None when only content was stored.

        Its buffers are views of the file and keep it mapped as long as they live; compressed ones
        are decompressed into memory of their own when this is first asked for.

        Raises:
            ObjectCorruptError: A compressed buffer is damaged, or is not what its entry says.
            StoreError: The library that decompresses it is missing, or memory is.
        """
        if not self.has_payload:
            return None
        buffers = [
            open_buffer(index, entry, self._stored(entry), name=self.name)
            for index, entry in enumerate(self.buffers)
        ]
        return Payload(bytes(self._header), buffers)

    def verify(self) -> None:
        """Check every buffer against its checksum: one pass over the data.

        Raises:
            ObjectCorruptError: A buffer's bytes are not those that were written.
        """
        for index, entry in enumerate(self.buffers):
            _check(index, self._stored(entry), entry, self.name)

    def _stored(self, entry: StoredBuffer) -> memoryview:
        return self._data[entry.offset : entry.offset + entry.stored_nbytes]


def open_buffer(index: int, entry: StoredBuffer, stored: memoryview, *, name: str) -> memoryview:
    """Return a buffer: the stored bytes themselves, unchecked, or decompressed and checked.

    Args:
        index: Which one it is, for messages.
        entry: What the object says of it.
        stored: Its bytes in the file.
        name: The object, for messages.

    Raises:
        ObjectCorruptError: A compressed buffer is damaged, or is not what its entry says.
        StoreError: The library that decompresses it is missing, or memory is.
    """
    if entry.codec == RAW:
        return stored
    _check(index, stored, entry, name)
    return decompress(entry.codec, stored, entry.nbytes, name=name)


def _check(index: int, stored: memoryview, entry: StoredBuffer, name: str) -> None:
    if xxhash.xxh3_64_intdigest(stored) != entry.checksum:
        raise corrupt(name, f"the checksum of buffer {index} is wrong")


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def build(
    content: bytes | memoryview,
    payload: Payload | None = None,
    token: bytes = NO_TOKEN,
    compress: Compress | None = None,
) -> list[memoryview]:
    """Lay one object out as the parts of its file, in order.

    Content and buffers are not copied, but for those that `compress` makes smaller.
    """
    content = memoryview(content).cast("B")
    payload_header = memoryview(payload.header if payload else b"")
    buffers = payload.buffers if payload else []
    stored = [compress(buffer) if compress else (buffer, RAW) for buffer in buffers]
    version = 1 if all(codec == RAW for _, codec in stored) else 2
    entry = _ENTRIES[version]
    end = HEADER_NBYTES + entry.size * len(buffers) + content.nbytes + payload_header.nbytes
    table = bytearray()
    data: list[memoryview] = []
    for buffer, (part, codec) in zip(buffers, stored, strict=True):
        offset = _aligned(end)
        data += [memoryview(bytes(offset - end)), part]
        fields = (offset, part.nbytes, xxhash.xxh3_64_intdigest(part), buffer.nbytes, codec)
        table += entry.pack(*fields[: 3 if version == 1 else 5])
        end = offset + part.nbytes

    def fixed(checksum: int) -> bytes:
        return _FIXED.pack(
            MAGIC,
            version,
            FLAG_PAYLOAD if payload else 0,
            len(buffers),
            end,
            content.nbytes,
            payload_header.nbytes,
            token,
            checksum,
        )

    head = [memoryview(bytes(table)), content, payload_header, *data[:1]]
    checksum = xxhash.xxh3_64(fixed(0))
    for part in head:
        checksum.update(part)
    return [memoryview(fixed(checksum.intdigest())), *head, *data[1:]]


def parse(data: memoryview, *, name: str) -> StoredObject:
    """Take one whole object apart without copying its content or buffers.

    Args:
        data: The bytes of the file, all of them.
        name: Where they come from, for messages.

    Raises:
        ObjectCorruptError: They are not one whole object of a known version.
    """
    head = parse_head(data[:HEADER_NBYTES], data.nbytes, name=name)
    return StoredObject(data, head, parse_buffers(data[: head.data_start], head, name=name), name)


def parse_head(data: memoryview, file_nbytes: int, *, name: str) -> Head:
    """Read the first `HEADER_NBYTES` of a file; the checksum is not looked at.

    Raises:
        UnknownObjectError: They do not begin an object, or one of another version.
        ObjectCorruptError: The object is not whole.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise UnknownObjectError(
            f"{name} cannot be read: it is not an object of a zfast store",
            hint="if a result should be there, remove the file: its task computes it anew",
        )
    version = int.from_bytes(data[8:10], "little")
    if data.nbytes >= 10 and version not in _ENTRIES:
        raise UnknownObjectError(
            f"{name} has format version {version}, this zfast reads version 1 to {FORMAT_VERSION}",
            hint="upgrade zfast here to the one that wrote it, or delete the object to compute it "
            "anew",
        )
    if data.nbytes < HEADER_NBYTES:
        raise corrupt(name, f"it is cut off at {data.nbytes} bytes")
    _, _, flags, n, nbytes, content_nbytes, header_nbytes, token, checksum = _FIXED.unpack_from(
        data
    )
    if nbytes != file_nbytes:
        raise corrupt(name, f"it has {file_nbytes} bytes, its header says {nbytes}")
    content_start = HEADER_NBYTES + _ENTRIES[version].size * n
    header_start = content_start + content_nbytes
    header_end = header_start + header_nbytes
    head = Head(version, flags, n, nbytes, content_start, header_start, header_end, token, checksum)
    if head.data_start > nbytes:
        raise corrupt(name, "the lengths in its header are more than it holds")
    return head


def parse_buffers(data: memoryview, head: Head, *, name: str) -> tuple[StoredBuffer, ...]:
    """Check the head's checksum, then read where the buffers are.

    Args:
        data: The first ``head.data_start`` bytes of the file.
        head: What `parse_head` made of them.
        name: Where they come from, for messages.

    Raises:
        ObjectCorruptError: The checksum is wrong, or the buffers are not where they should be.
    """
    computed = xxhash.xxh3_64(data[:_CHECKSUM_START])
    computed.update(bytes(8))
    computed.update(data[HEADER_NBYTES:])
    if computed.intdigest() != head.checksum:
        raise corrupt(name, "the checksum of its header is wrong")
    buffers: list[StoredBuffer] = []
    end = head.header_end
    table = data[HEADER_NBYTES : head.content_start]
    for offset, stored_nbytes, checksum, *rest in _ENTRIES[head.version].iter_unpack(table):
        nbytes, codec = rest or (stored_nbytes, RAW)
        if offset != _aligned(end) or stored_nbytes > head.nbytes - offset:
            raise corrupt(name, f"buffer {len(buffers)} is not where it should be")
        too_long = nbytes > stored_nbytes * MAX_EXPANSION.get(codec, 0)
        if too_long or (codec == RAW and nbytes != stored_nbytes):
            raise corrupt(
                name, f"buffer {len(buffers)} cannot have {nbytes} bytes, or its codec is unknown"
            )
        buffers.append(StoredBuffer(offset, stored_nbytes, checksum, nbytes, codec))
        end = offset + stored_nbytes
    if end != head.nbytes:
        raise corrupt(name, f"{head.nbytes - end} bytes are left over")
    return tuple(buffers)


def corrupt(name: str, what: str) -> ObjectCorruptError:
    """Make the error for a damaged object."""
    return ObjectCorruptError(
        f"{name} cannot be read: {what}", hint="delete it, its task computes it anew"
    )
