"""What the hub and its workers say to each other.

Each message's kind stands in its header frame, its fields in the body as MessagePack, its bulk in
buffers. Several payloads in one message are laid end to end: each is its header and its buffers,
``counts`` says how many buffers belong to each, the header included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from zfast import _core
from zfast.codec import Payload
from zfast.errors import ProtocolError

#: Raised with every change of a message below; hub and workers of one host run one version.
PROTOCOL_VERSION = 1


class ControlMessage(msgspec.Struct, frozen=True, array_like=True):
    """Base of all control messages."""


class Ready(ControlMessage, frozen=True):
    """Worker → hub: imports done, waiting for jobs."""

    protocol_version: int
    pid: int


class Keep(ControlMessage, frozen=True):
    """Hub → worker: the bytes of a blob that jobs will refer to; buffer 0 holds them."""

    digest: bytes


class Forget(ControlMessage, frozen=True):
    """Hub → worker: drop every blob; those still needed are sent again."""


class Run(ControlMessage, frozen=True):
    """Hub → worker: run a job. Buffers: its payloads."""

    job_id: bytes
    code: bytes
    context: bytes
    counts: list[int]


class Done(ControlMessage, frozen=True):
    """Worker → hub: the job's result. Buffers: its payloads."""

    job_id: bytes
    counts: list[int]


class Failed(ControlMessage, frozen=True):
    """Worker → hub: the job could not be run, or its result not be sent. The worker lives."""

    job_id: bytes
    error_type: str
    message: str
    traceback: str


class Note(ControlMessage, frozen=True):
    """Worker → hub: something said while a job runs, for the layer above. Buffer 0 holds it."""

    job_id: bytes
    topic: str


class Stop(ControlMessage, frozen=True):
    """Hub → worker: finish what runs, then exit."""


_MESSAGES: tuple[type[ControlMessage], ...] = (Ready, Keep, Forget, Run, Done, Failed, Note, Stop)
#: Kinds start well above a channel's, so that one talking to the other is told at once.
_KINDS = {message: 64 + index for index, message in enumerate(_MESSAGES)}
_DECODERS = {64 + index: msgspec.msgpack.Decoder(cls) for index, cls in enumerate(_MESSAGES)}
_encode = msgspec.msgpack.Encoder().encode

M = TypeVar("M", bound=ControlMessage)


def encode_control(message: ControlMessage) -> tuple[int, bytes]:
    """The kind and the body of a control message."""
    return _KINDS[type(message)], _encode(message)


def decode_control(message: _core.Message) -> ControlMessage:
    """The control message in a received one.

    Raises:
        ProtocolError: Its kind is unknown or its body malformed.
    """
    decoder = _DECODERS.get(message.kind)
    if decoder is None:
        raise ProtocolError(f"a control message of unknown kind {message.kind}", offset=5)
    try:
        return decoder.decode(message.body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a malformed control message: {error}") from error


def join_payloads(payloads: Iterable[Payload]) -> tuple[list[int], list[bytes | memoryview]]:
    """Lay payloads end to end: ``counts`` and buffers. Copies nothing."""
    counts: list[int] = []
    buffers: list[bytes | memoryview] = []
    for payload in payloads:
        counts.append(1 + len(payload.buffers))
        buffers.append(payload.header)
        buffers.extend(payload.buffers)
    return counts, buffers


def split_payloads(counts: Sequence[int], buffers: Sequence[memoryview]) -> list[Payload]:
    """Undo ``join_payloads``; the payloads borrow from ``buffers``, their headers are copied.

    Raises:
        ProtocolError: The counts do not add up.
    """
    if any(count < 1 for count in counts) or sum(counts) != len(buffers):
        raise ProtocolError(f"payload counts {list(counts)} do not fit {len(buffers)} buffers")
    payloads: list[Payload] = []
    start = 0
    for count in counts:
        payloads.append(Payload(bytes(buffers[start]), list(buffers[start + 1 : start + count])))
        start += count
    return payloads
