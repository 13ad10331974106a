"""What a peer with a token and a door say to each other: one message each, in the wire format.

::

    peer (DEALER)             door's owner (ROUTER)
    Token: its text    ──▶
                       ◀──    Answer: taken, or why not
"""

from __future__ import annotations

import msgspec

from zfast import _core
from zfast.errors import ProtocolError

#: The kinds of these two messages; no room has others of their number.
TOKEN_KIND = 255
ANSWER_KIND = 254
#: How the frame of a token begins.
_TOKEN = b"ZFST" + bytes([_core.WIRE_VERSION, TOKEN_KIND, 0, 0])


class Answer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What became of a token.

    Attributes:
        role: What it gave its key; or, where no token is needed, what the key has.
        left_s: How long it lasts, leeway included; None without end.
        refusal: Why it was not taken; empty if it was.
        for_now: It may be taken in a moment.
    """

    role: str = ""
    left_s: float | None = None
    refusal: str = ""
    for_now: bool = False


def is_token(frame: bytes | memoryview) -> bool:
    """Whether the first frame of a message says that it is a token."""
    return bytes(frame[: len(_TOKEN)]) == _TOKEN


def read_token(frame: bytes | memoryview) -> str:
    """The token in a frame.

    Raises:
        ProtocolError: It holds none.
    """
    body = _core.decode_message([frame]).body
    try:
        return bytes(body).decode("ascii")
    except UnicodeDecodeError as error:
        raise ProtocolError("a token that is no ASCII") from error


def read_answer(message: _core.Message | _core.Batch) -> Answer:
    """The answer that a message is.

    Raises:
        ProtocolError: It is none.
    """
    if isinstance(message, _core.Batch) or message.kind != ANSWER_KIND:
        raise ProtocolError("no answer to a token")
    try:
        return msgspec.json.decode(bytes(message.body), type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"no answer to a token: {error}") from error
