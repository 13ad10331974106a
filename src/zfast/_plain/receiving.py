"""Messages received from pyzmq's sockets; chunks of streams are copied to their place."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import zmq

from zfast._plain.accounts import Account
from zfast._plain.frames import Batch, Message, decode_message, is_batch
from zfast._plain.sockets import check_open, transport_error
from zfast._plain.streams import KIND_CHUNK, Landing
from zfast.errors import ProtocolError

_Admits: TypeAlias = Callable[[bytes | None, str, int, bytes | None], bool]
#: How a frame with a token begins, and how long it is at most.
_TOKEN = b"ZFST\x02\xff\0\0"
_TOKEN_MAX_NBYTES = 64 << 10


def recv(
    socket: zmq.Socket[Any],
    *,
    routed: bool = False,
    wait: bool = False,
    peers: dict[Any, Any] | None = None,
    admits: _Admits | None = None,
) -> Message | Batch | Landing | None:
    """Receive one message or batch, or chunks of one stream; see ``_core.recv``."""
    landed: Landing | None = None
    while True:
        content = _recv_one(socket, routed, wait and landed is None, admits)
        if content is None or peers is None or isinstance(content, Batch):
            return content if content is not None else landed
        peer: Account | None = peers.get(content.routing_id)
        landing = None if peer is None else _landing_of(content, peer)
        if peer is None or landing is None:
            return content  # the link takes chunks that are not as they should be as well
        if landing.whole or peer.grant_is_due:
            return landing
        landed = landing


def _recv_one(
    socket: zmq.Socket[Any], routed: bool, wait: bool, admits: _Admits | None
) -> Message | Batch | None:
    check_open(socket)
    try:
        frames = socket.recv_multipart(0 if wait else zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
    except zmq.ZMQError as error:
        raise transport_error("receiving failed", error) from error
    routing_id = frames.pop(0).bytes if routed else None
    if admits is not None and not (frames and _may_come_in(frames[0], routing_id, admits)):
        return None
    try:
        content = _decode(frames)
    except ProtocolError as error:
        error.routing_id = routing_id
        raise
    content.routing_id = routing_id
    return content


def _may_come_in(first: zmq.Frame, routing_id: bytes | None, admits: _Admits) -> bool:
    try:
        user_id = str(first.get("User-Id"))
    except zmq.ZMQError:
        user_id = ""
    try:
        source_fd = int(first.get(zmq.SRCFD))
    except zmq.ZMQError:
        source_fd = -1
    is_token = len(first) <= _TOKEN_MAX_NBYTES and first.bytes.startswith(_TOKEN)
    return admits(routing_id, user_id, source_fd, first.bytes if is_token else None)


def _decode(frames: list[zmq.Frame]) -> Message | Batch:
    views = [frame.buffer for frame in frames]
    if is_batch(views):
        return Batch(views[0])
    message = decode_message(views)
    if len(frames) == 1 and not message.body and not message.buffers:
        try:
            message.source_fd = int(frames[0].get(zmq.SRCFD))
        except zmq.ZMQError:
            pass  # over inproc there is none
    return message


def _landing_of(message: Message, peer: Account) -> Landing | None:
    """The landing that a chunk without digest was copied to, or None."""
    if message.kind != KIND_CHUNK or message.flags or len(message.body) != 8:
        return None
    landing: Landing | None = peer.landings.get(message.request_id)
    (offset,) = struct.unpack("<Q", message.body)
    if landing is None or not landing.land(peer, offset, message.buffers):
        return None
    landing.routing_id = message.routing_id
    return landing
