"""The serializers "zfast" and "zfast/inline"."""

from __future__ import annotations

import binascii
from typing import Any

from prefect.serializers import Serializer
from pydantic import Field

from zfast.codec import Payload, decode, encode
from zfast.errors import CodecError, ObjectCorruptError, TicketError
from zfast.prefect import internals, tickets
from zfast.prefect.storage import ZfastStorage
from zfast.prefect.tickets import Ticket
from zfast.store.folder import open_object
from zfast.store.format import MAGIC, build, parse

# The inline form is a whole object in base64. It begins with what every object begins with.
_INLINE_PREFIX = binascii.b2a_base64(MAGIC[:6], newline=False)


class ZfastInlineSerializer(Serializer):
    """Self-contained ASCII bytes, for any storage block.

    Faster and smaller in memory than pickle in base64 lines, yet each result is copied and encoded
    whole. With a `ZfastStorage` the serializer "zfast" does neither.
    """

    type: str = Field(default="zfast/inline", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        """Encode a value.

        Raises:
            CodecError: The value cannot be pickled.
        """
        return _dump_inline(encode(obj))

    def loads(self, blob: bytes) -> Any:
        """Decode what either of zfast's serializers or its storage gave. See `load`."""
        return load(blob)


class ZfastSerializer(Serializer):
    """Results that a `ZfastStorage` writes from the memory they are in, without a copy.

    With another storage block, or outside of a `ResultStore`, the bytes are those of
    "zfast/inline".
    """

    type: str = Field(default="zfast", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        """Encode a value: to a ticket when a `ZfastStorage` is about to get it.

        Raises:
            CodecError: The value cannot be pickled.
        """
        payload = encode(obj)
        if isinstance(internals.storage_being_written(self), ZfastStorage):
            return bytes(tickets.stage(payload))
        return _dump_inline(payload)

    def loads(self, blob: bytes) -> Any:
        """Decode what either of zfast's serializers or its storage gave. See `load`."""
        return load(blob)


def load(blob: bytes) -> Any:
    """Decode a ticket, inline bytes, or a whole object of a zfast store.

    A value from a ticket lies in the mapped file: its arrays are writable, writing changes this
    process's copy of the pages touched.

    Raises:
        TicketError: The ticket's payload is not there, or never was.
        KeyNotFoundError: The object was deleted since.
        ObjectCorruptError: The object or the bytes are damaged.
        CodecError: The bytes are none of these, or the value cannot be built.
    """
    ticket = tickets.find(blob)
    if ticket is not None:
        return decode(_redeem(ticket), own=True)
    if blob.startswith(_INLINE_PREFIX):
        try:
            data = binascii.a2b_base64(blob)
        except binascii.Error as error:
            raise ObjectCorruptError(f"an inline result cannot be read: {error}") from error
        stored = parse(memoryview(data), name="an inline result")
    elif blob.startswith(MAGIC):
        # Results of a block that was not saved are read by Prefect as plain files.
        stored = parse(memoryview(blob), name="a result")
    else:
        raise CodecError(
            f"these {len(blob)} bytes are not a result that zfast wrote",
            hint="read it with the serializer that wrote it",
        )
    stored.verify()
    if stored.payload is None:
        raise CodecError(f"{stored.name} was written with another serializer than zfast's")
    return decode(stored.payload, copy=True)


def _redeem(ticket: Ticket) -> Payload:
    if ticket.path is None:
        raise TicketError(
            f"the payload of {bytes(ticket).decode()} was never stored",
            hint="the storage that got this ticket is not a ZfastStorage, or the write failed; "
            'run it again, with result_serializer="zfast/inline" for other storages',
        )
    # Another token there means that the key was written again since: the newer payload is the
    # right answer.
    stored = open_object(ticket.path)
    if stored.payload is None:
        raise TicketError(
            f"{ticket.path} was overwritten with another serializer than zfast's",
            hint="read the result again",
        )
    return stored.payload


def _dump_inline(payload: Payload) -> bytes:
    return binascii.b2a_base64(b"".join(build(b"", payload)), newline=False)
