"""Control messages: structs whose kind stands in a message's header, their fields in its body."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from typing_extensions import Buffer

from zfast.errors import ProtocolError

#: Messages that are received from a socket before anything else has its turn.
BURST = 256
#: What travels beside a control message.
Buffers = Sequence["bytes | memoryview"]


class ControlMessage(msgspec.Struct, frozen=True, array_like=True):
    """Base of all control messages."""


class MessageTable:
    """The messages of one conversation, each with its kind.

    Args:
        first_kind: Of the first message; the others follow.
        messages: In an order that never changes within a version.
    """

    def __init__(self, first_kind: int, messages: Sequence[type[ControlMessage]]) -> None:
        kinds = {message: first_kind + index for index, message in enumerate(messages)}
        self.kinds = kinds
        self._decoders = {kind: msgspec.msgpack.Decoder(cls) for cls, kind in kinds.items()}
        self._encode = msgspec.msgpack.Encoder().encode

    def encode(self, message: ControlMessage) -> tuple[int, bytes]:
        """The kind and the body of a message."""
        return self.kinds[type(message)], self._encode(message)

    def decode(self, kind: int, body: Buffer) -> ControlMessage:
        """The message of that kind and body.

        Raises:
            ProtocolError: The kind is unknown or the body malformed.
        """
        decoder = self._decoders.get(kind)
        if decoder is None:
            raise ProtocolError(f"a control message of unknown kind {kind}", offset=5)
        try:
            return decoder.decode(body)
        # msgspec raises two errors of Python's own: for text that is no UTF-8, and for depth.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a malformed control message: {error}") from error
