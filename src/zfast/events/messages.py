"""Control messages between a subscriber and a publisher or a relay: msgspec structs, MessagePack.

::

    subscriber (DEALER)                     publisher or relay (ROUTER)
    Hello                          ──▶
                                   ◀──      Welcome: where its events are
    Ping(nonce, prefixes)          ──▶
                                   ◀══      Marker, with the events: where they stand
    Ask(seen)                      ──▶
                                   ◀──      Snapshot…, each with frames of events after it
    Bye                            ──▶      I have all that you had, or go
                                   ◀──      Refusal: you may not read that

    publisher (DEALER)                      relay (ROUTER)
    Beat(publisher, positions)     ──▶
                                   ◀──      BeatHeard(relay, seen)
    History…, each with frames     ──▶
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from zfast.errors import ProtocolError, VersionMismatchError
from zfast.events.topics import PARTS, level_of

CONTROL_VERSION = 1
#: Prefixes a subscriber may have; filters that need more are applied by the subscriber.
MAX_PREFIXES = 64
#: Frames of events in one Snapshot.
SNAPSHOT_FRAMES = 512

Positions: TypeAlias = dict[bytes, list[int]]
"""For each publisher, the counts of the prefixes that were asked about, in that order."""


class Hello(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """A subscriber asks where the events are.

    ``listener`` names it to a publisher that told it of itself, and waits for it before it ends.
    """

    listener: str = ""
    version: int = CONTROL_VERSION


class Welcome(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """``events``: the endpoint of the events of ``source``, which is new with each start.

    A relay leaves it empty: its endpoints follow from the one that was asked.
    """

    source: bytes
    events: str = ""
    version: int = CONTROL_VERSION


class Ping(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Asks for a Marker among the events, under the topic ``~nonce``.

    Who is not ``source``, but its successor at the same endpoint, answers with a Welcome.
    """

    source: bytes
    nonce: bytes
    prefixes: list[bytes]


class Marker(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Where each publisher stands; it comes with the events, after all of those.

    ``ending`` says that no more events come; a Bye is waited for. ``left`` are those of the
    publishers that have gone: what they left behind can still be asked for.
    """

    source: bytes
    positions: Positions
    left: list[bytes] = []
    ending: bool = False


class Ask(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Asks for what the subscriber lacks: all after ``seen``, and of others the truth if ``truth``.

    Publishers that are not in ``seen`` are new: their history is wanted, unless ``first``.
    """

    number: int
    prefixes: list[bytes]
    seen: Positions
    first: bool = False
    truth: bool = True


class Snapshot(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Part of the reply to an Ask; frames of events follow.

    ``positions`` and ``left``, as in a Marker, are in the last part.
    """

    number: int
    positions: Positions | None = None
    left: list[bytes] = []


class Bye(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """A subscriber goes."""

    nonce: bytes = b""


class Refusal(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """What a Ping or an Ask asks for is not the subscriber's to have."""

    reason: str


class Beat(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """A publisher lives, and has published so many."""

    publisher: bytes
    position: int
    leaving: bool = False


class BeatHeard(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """The relay's answer: its start, and how far it has heard that publisher."""

    relay: bytes
    seen: int


class History(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Frames of events follow, which the relay lacks; before them it lets nothing pass.

    ``more`` says that it is a part, and not the last: what is live waits for that one.
    """

    publisher: bytes
    more: bool = False


ControlMessage: TypeAlias = (
    Hello | Welcome | Ping | Marker | Ask | Snapshot | Bye | Refusal | Beat | BeatHeard | History
)

_decoder = msgspec.msgpack.Decoder(ControlMessage)
encode_message = msgspec.msgpack.Encoder().encode


def decode_message(frame: bytes) -> ControlMessage:
    """One control message.

    Raises:
        ProtocolError: It is none, asks for too much, or is of another version.
    """
    try:
        message: ControlMessage = _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a control message cannot be read: {error}") from error
    if isinstance(message, Hello | Welcome) and message.version != CONTROL_VERSION:
        raise VersionMismatchError(
            f"a peer speaks version {message.version} of the events' control messages, this zfast "
            f"{CONTROL_VERSION}",
            hint="install the same version of zfast on both sides",
        )
    if isinstance(message, Ping | Ask):
        if len(message.prefixes) > MAX_PREFIXES:
            raise ProtocolError(f"a subscriber asks for {len(message.prefixes)} prefixes")
        if any(level_of(prefix) > PARTS for prefix in message.prefixes):
            raise ProtocolError(f"a subscriber asks for a prefix of more than {PARTS} parts")
    if isinstance(message, Ask) and any(
        count < 0 for counts in message.seen.values() for count in counts
    ):
        raise ProtocolError("a subscriber has seen fewer events than none")
    if isinstance(message, Ping) and not 8 <= len(message.nonce) <= 32:
        raise ProtocolError("a subscriber's nonce has the wrong length")
    return message
