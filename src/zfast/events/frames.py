"""The one frame that an event is on the wire: topic, NUL, header, body. See docs/events-format.md.

The header holds a **count** for each of the topic's prefixes: how many events under that prefix the
publisher has published so far, this one included. A subscriber to any prefix so sees by itself
whether it misses something.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from zfast.errors import ProtocolError, VersionMismatchError
from zfast.events.event import Kind, Published, StateEvent, WorkerEvent

MAGIC = b"ZE"
#: Of the frame; a body's version is its own.
FRAME_VERSION = 1
PUBLISHER_ID_NBYTES = 16
#: Of a body. A frame that a peer finds too large would end its connection: see ``sockets``.
MAX_BODY_NBYTES = 256 << 10
#: What is left of a body that would be larger: so many inputs and tags, or else none of them, and
#: so many characters of each text.
MAX_INPUTS = 1000
MAX_TAGS = 100
MAX_TEXT = 1000

_HEADER = struct.Struct("<2sBx16s5Q")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StateEvent)
_worker_decoder = msgspec.msgpack.Decoder(WorkerEvent)
_WORKER = b"/" + Kind.WORKER.value.encode() + b"/"


class EventFrame(NamedTuple):
    """An event's frame, its header read and its body not.

    Attributes:
        topic: Whole, ends with a slash.
        publisher: 16 bytes.
        counts: One for each prefix of the topic, by level; the first is the sequence number.
        body: MessagePack.
        frame: All of it.
    """

    topic: bytes
    publisher: bytes
    counts: tuple[int, ...]
    body: bytes
    frame: bytes


def pack_frame(topic: bytes, publisher: bytes, counts: tuple[int, ...], body: bytes) -> bytes:
    """The frame of one event; ``counts`` are five."""
    return b"".join((topic, b"\0", _HEADER.pack(MAGIC, FRAME_VERSION, publisher, *counts), body))


def unpack_frame(frame: bytes) -> EventFrame:
    """Read the topic and the header.

    Raises:
        VersionMismatchError: It is of another version of this format.
        ProtocolError: It is no event.
    """
    topic, nul, rest = frame.partition(b"\0")
    if not nul or len(rest) < 3 or rest[:2] != MAGIC:
        raise ProtocolError("a frame is not an event of zfast", offset=len(topic))
    if rest[2] != FRAME_VERSION:
        raise VersionMismatchError(
            f"an event has version {rest[2]} of the frame, this zfast knows {FRAME_VERSION}",
            hint="install the same version of zfast on both sides",
        )
    if len(rest) < _HEADER.size:
        raise ProtocolError("an event's header is cut short", offset=len(frame))
    if topic.count(b"/") != 4 or not topic.endswith(b"/"):
        raise ProtocolError(f"an event has the topic {topic!r}")
    _, _, publisher, *counts = _HEADER.unpack_from(rest)
    return EventFrame(topic, publisher, tuple(counts), rest[_HEADER.size :], frame)


def encode_body(event: Published) -> bytes:
    """The event's fields as MessagePack; what makes it larger than ``MAX_BODY_NBYTES`` is cut."""
    body = _encoder.encode(event)
    if len(body) > MAX_BODY_NBYTES and isinstance(event, StateEvent):
        event = msgspec.structs.replace(
            event, inputs=event.inputs[:MAX_INPUTS], tags=event.tags[:MAX_TAGS]
        )
        body = _encoder.encode(event)
        if len(body) > MAX_BODY_NBYTES:
            event = msgspec.structs.replace(event, inputs=[], tags=[])
    if len(body) > MAX_BODY_NBYTES:
        texts = {
            name: text[:MAX_TEXT]
            for name, text in msgspec.structs.asdict(event).items()
            if isinstance(text, str)
        }
        body = _encoder.encode(msgspec.structs.replace(event, **texts))
    return body


def decode_event(frame: EventFrame) -> Published:
    """The event of a frame; fields of a newer version are skipped.

    Raises:
        ProtocolError: The body is no event.
    """
    start = frame.topic.find(b"/")
    is_worker = frame.topic.startswith(_WORKER, start)
    event: Published
    try:
        event = (_worker_decoder if is_worker else _decoder).decode(frame.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            f"an event's body cannot be read: {error}",
            offset=len(frame.frame) - len(frame.body),
        ) from error
    event.publisher = frame.publisher.hex()
    event.sequence = frame.counts[0]
    event.replayed = False
    return event
