"""One stored object, one file: how it is laid out, and how it is read back in place.

All integers are little-endian::

    offset  size  field
    0       8     magic, b"\\x89ZFO\\r\\n\\x1a\\n"
    8       2     format version
    10      2     flags; FLAG_PAYLOAD: the object holds a payload
    12      4     n, number of buffers
    16      8     nbytes of the whole file
    24      8     nbytes of the content
    32      8     nbytes of the payload's header
    40      16    token of the ticket that the content names, or zeros
    56      8     xxh3_64 of everything before the first buffer, these 8 bytes taken as zero
    64      24·n  for each buffer: offset in the file, nbytes, xxh3_64
            …     content: what the caller stores beside the payload
            …     header of the payload
            …     the buffers, each at a multiple of 64 bytes, zeros between them

Reading checks the lengths and the checksum at 56 every time; the buffers' own checksums cost a
pass over the data and are checked by `StoredObject.verify` only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from zfast.codec import Payload
from zfast.errors import ObjectCorruptError

MAGIC = b"\x89ZFO\r\n\x1a\n"
FORMAT_VERSION = 1
FLAG_PAYLOAD = 1
HEADER_NBYTES = 64
ALIGNMENT = 64
TOKEN_NBYTES = 16
NO_TOKEN = bytes(TOKEN_NBYTES)

_FIXED = struct.Struct("<8sHHIQQQ16sQ")
_ENTRY = struct.Struct("<QQQ")
_CHECKSUM_START = 56


@dataclass(frozen=True)
class StoredObject:
    """An object read from a store.

    Attributes:
        content: The bytes stored beside the payload.
        payload: The stored value, or None when only content was stored. Its buffers are views of
            the file and keep it mapped as long as they live.
        token: The token of the ticket that the content names, or zeros.
        nbytes: Length of the whole object in bytes.
        checksums: xxh3_64 of each buffer, as written.
        name: Where it was read from, for messages.
    """

    content: memoryview
    payload: Payload | None
    token: bytes
    nbytes: int
    checksums: tuple[int, ...]
    name: str

    def verify(self) -> None:
        """Check every buffer against its checksum: one pass over the data.

        Raises:
            ObjectCorruptError: A buffer's bytes are not those that were written.
        """
        buffers = self.payload.buffers if self.payload else []
        for index, (buffer, expected) in enumerate(zip(buffers, self.checksums, strict=True)):
            if xxhash.xxh3_64_intdigest(buffer) != expected:
                raise _corrupt(self.name, f"the checksum of buffer {index} is wrong")


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def build(
    content: bytes | memoryview, payload: Payload | None = None, token: bytes = NO_TOKEN
) -> list[memoryview]:
    """Lay one object out as the parts of its file, in order. Content and buffers are not copied."""
    content = memoryview(content).cast("B")
    payload_header = memoryview(payload.header if payload else b"")
    buffers = payload.buffers if payload else []
    end = HEADER_NBYTES + _ENTRY.size * len(buffers) + content.nbytes + payload_header.nbytes
    table = bytearray()
    data: list[memoryview] = []
    for buffer in buffers:
        offset = _aligned(end)
        data += [memoryview(bytes(offset - end)), buffer]
        table += _ENTRY.pack(offset, buffer.nbytes, xxhash.xxh3_64_intdigest(buffer))
        end = offset + buffer.nbytes

    def fixed(checksum: int) -> bytes:
        flags = FLAG_PAYLOAD if payload else 0
        return _FIXED.pack(
            MAGIC,
            FORMAT_VERSION,
            flags,
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
    if data[: len(MAGIC)] != MAGIC[: data.nbytes] or not data.nbytes:
        raise _corrupt(name, "it is not an object of a zfast store")
    if data.nbytes < HEADER_NBYTES:
        raise _corrupt(name, f"it is cut off at {data.nbytes} bytes")
    (_, version, flags, n, nbytes, content_nbytes, header_nbytes, token, checksum) = (
        _FIXED.unpack_from(data)
    )
    if version != FORMAT_VERSION:
        raise ObjectCorruptError(
            f"{name} has format version {version}, this zfast reads version {FORMAT_VERSION}",
            hint="read it with the zfast that wrote it, or delete it to compute it anew",
        )
    if nbytes != data.nbytes:
        raise _corrupt(name, f"it has {data.nbytes} bytes, its header says {nbytes}")
    content_start = HEADER_NBYTES + _ENTRY.size * n
    header_start = content_start + content_nbytes
    header_end = header_start + header_nbytes
    data_start = _aligned(header_end) if n else header_end
    if data_start > nbytes:
        raise _corrupt(name, "the lengths in its header are more than it holds")
    computed = xxhash.xxh3_64(data[:_CHECKSUM_START])
    computed.update(bytes(8))
    computed.update(data[HEADER_NBYTES:data_start])
    if computed.intdigest() != checksum:
        raise _corrupt(name, "the checksum of its header is wrong")
    buffers: list[memoryview] = []
    checksums: list[int] = []
    end = header_end
    for offset, size, digest in _ENTRY.iter_unpack(data[HEADER_NBYTES:content_start]):
        if offset != _aligned(end) or size > nbytes - offset:
            raise _corrupt(name, f"buffer {len(buffers)} is not where it should be")
        buffers.append(data[offset : offset + size])
        checksums.append(digest)
        end = offset + size
    if end != nbytes:
        raise _corrupt(name, f"{nbytes - end} bytes are left over")
    return StoredObject(
        content=data[content_start:header_start],
        payload=Payload(bytes(data[header_start:header_end]), buffers)
        if flags & FLAG_PAYLOAD
        else None,
        token=token,
        nbytes=nbytes,
        checksums=tuple(checksums),
        name=name,
    )


def _corrupt(name: str, what: str) -> ObjectCorruptError:
    return ObjectCorruptError(
        f"{name} cannot be read: {what}", hint="delete it, its task computes it anew"
    )
