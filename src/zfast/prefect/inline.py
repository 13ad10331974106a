"""The inline form of a result: a whole object of the store in bytes that any storage can keep.

Where Prefect keeps the bytes as they are – results of flows, and of tasks with a ``key_storage`` –
they are the object itself. Else they become a string of a JSON record, and are its base64: there
each byte is copied, and its memory made, five times by Prefect and once here.
"""

from __future__ import annotations

import binascii
import importlib.util
from functools import partial
from typing import Any

import pybase64

from zfast.codec import Payload, decode
from zfast.errors import CodecError, ObjectCorruptError
from zfast.store.compression import compress
from zfast.store.format import HEADER_NBYTES, MAGIC, StoredObject, build, parse, parse_head

# It begins with what every object begins with.
_PREFIX = pybase64.b64encode(MAGIC[:6])
_HEAD_NBYTES = -(-HEADER_NBYTES // 3) * 4
# A byte saved is saved in each of the copies, so the fastest codec wins.
_compress = partial(compress, "lz4") if importlib.util.find_spec("lz4") else None


def dump(payload: Payload, *, in_json: bool) -> bytes:
    """Write a payload: as ASCII, or as it is. Large buffers that shrink by it are compressed."""
    data = b"".join(build(b"", payload, compress=_compress))
    return pybase64.b64encode(data) if in_json else data


def load(blob: bytes) -> Any:
    """Read a value that `dump` wrote. Its arrays are writable and nobody else's.

    Raises:
        ObjectCorruptError: The bytes are damaged.
        CodecError: They are something else, or the value cannot be built.
    """
    if blob.startswith(_PREFIX):
        try:
            data = pybase64.b64decode_as_bytearray(blob, validate=True)
        except binascii.Error as error:
            raise ObjectCorruptError(f"an inline result cannot be read: {error}") from error
        # The memory is new, so the value takes it over as it is.
        return decode(_payload(parse(memoryview(data), name="an inline result")), own=True)
    if blob.startswith(MAGIC):
        return decode(_payload(parse(memoryview(blob), name="a result")), copy=True)
    raise _foreign(blob)


def check(blob: bytes) -> None:
    """Check that bytes are those of `dump`, and all of them, without a look at the value.

    Raises:
        ObjectCorruptError: They are cut off.
        CodecError: They are something else.
    """
    if blob.startswith(_PREFIX):
        try:
            head = pybase64.b64decode(blob[:_HEAD_NBYTES], validate=True)
        except binascii.Error as error:
            raise ObjectCorruptError(f"an inline result cannot be read: {error}") from error
        nbytes = len(blob) // 4 * 3 - blob[-2:].count(b"=")
        parse_head(memoryview(head)[:HEADER_NBYTES], nbytes, name="an inline result")
    elif blob.startswith(MAGIC):
        parse_head(memoryview(blob)[:HEADER_NBYTES], len(blob), name="a result")
    else:
        raise _foreign(blob)


def _payload(stored: StoredObject) -> Payload:
    stored.verify()
    if stored.payload is None:
        raise CodecError(f"{stored.name} was written with another serializer than zfast's")
    return stored.payload


def _foreign(blob: bytes) -> CodecError:
    return CodecError(
        f"these {len(blob)} bytes are not a result that zfast wrote",
        hint="read it with the serializer that wrote it",
    )
