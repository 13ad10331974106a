"""The serializers "zfast" and "zfast/inline"."""

from __future__ import annotations

from typing import Any

from prefect.serializers import Serializer
from pydantic import Field

from zfast.codec import Payload, decode, encode
from zfast.errors import TicketError
from zfast.prefect import inline, internals, tickets
from zfast.prefect.storage import ZfastStorage
from zfast.prefect.tickets import Ticket
from zfast.store.folder import open_object


class ZfastInlineSerializer(Serializer):
    """Self-contained bytes, for any storage block.

    Faster and smaller in memory than pickle in base64 lines, yet each result is copied whole, and
    by tasks turned into text. With a `ZfastStorage` the serializer "zfast" does neither.
    """

    type: str = Field(default="zfast/inline", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        """Encode a value, as ASCII unless Prefect is about to store the bytes as they are.

        Raises:
            CodecError: The value cannot be pickled.
        """
        write = internals.current_write(self)
        return inline.dump(encode(obj), in_json=write is None or write.in_json)

    def loads(self, blob: bytes) -> Any:
        """Decode what either of zfast's serializers or its storage gave. See `load`."""
        return check(blob) if internals.is_existence_check() else load(blob)


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
        write = internals.current_write(self)
        if write is not None and isinstance(write.storage, ZfastStorage):
            return bytes(tickets.stage(payload))
        return inline.dump(payload, in_json=write is None or write.in_json)

    def loads(self, blob: bytes) -> Any:
        """Decode what either of zfast's serializers or its storage gave. See `load`."""
        return check(blob) if internals.is_existence_check() else load(blob)


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
    return inline.load(blob) if ticket is None else decode(_redeem(ticket), own=True)


def check(blob: bytes) -> None:
    """Check that `load` has something to read, without reading it.

    What a ticket stands for was found, and its header checked, when the storage located it.

    Raises:
        TicketError: The ticket's payload never was stored.
        ObjectCorruptError: The bytes are cut off.
        CodecError: They are nothing that zfast wrote.
    """
    ticket = tickets.find(blob)
    if ticket is None:
        inline.check(blob)
    else:
        _path_of(ticket)


def _redeem(ticket: Ticket) -> Payload:
    path = _path_of(ticket)
    # Another token there means that the key was written again since: the newer payload is the
    # right answer.
    stored = open_object(path)
    if stored.payload is None:
        raise TicketError(
            f"{path} was overwritten with another serializer than zfast's",
            hint="read the result again",
        )
    return stored.payload


def _path_of(ticket: Ticket) -> str:
    if ticket.path is None:
        raise TicketError(
            f"the payload of {bytes(ticket).decode()} was never stored",
            hint="the storage that got this ticket is not a ZfastStorage, or the write failed; "
            'run it again, with result_serializer="zfast/inline" for other storages',
        )
    return ticket.path
