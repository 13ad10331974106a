"""Messages sent over pyzmq's sockets, and the wait for them. Nothing but ``poll`` waits."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import zmq

from zfast import _fallback
from zfast._fallback import INLINE_MAX_NBYTES, MAX_BUFFERS
from zfast._plain.accounts import Account
from zfast._plain.tracker import SendTracker
from zfast.errors import ConfigError, TransportError

POLLIN = int(zmq.POLLIN)
POLLOUT = int(zmq.POLLOUT)
FLAG_BYTES = 8


def send_message(
    socket: zmq.Socket[Any],
    kind: int,
    body: Any,
    buffers: Sequence[Any] = (),
    *,
    flags: int = 0,
    request_id: int = 0,
    routing_id: bytes | None = None,
    copy: bool = False,
    tracker: SendTracker | None = None,
    inline_max_nbytes: int = INLINE_MAX_NBYTES,
) -> bool:
    """Send one message without waiting; see ``_core.send_message``."""
    views = [memoryview(buffer) for buffer in buffers]
    if len(views) > MAX_BUFFERS:
        raise ConfigError(f"a message carries at most {MAX_BUFFERS} buffers, not {len(views)}")
    for view in views:
        if not view.c_contiguous:
            raise BufferError("a buffer is not C-contiguous")
    head, *frames = _fallback.encode_message(
        kind,
        bytes(body),
        views,
        flags=flags,
        request_id=request_id,
        inline_max_nbytes=inline_max_nbytes,
    )
    return _send(socket, routing_id, head, frames, copy=copy, tracker=tracker)


def _send(
    socket: zmq.Socket[Any],
    routing_id: bytes | None,
    head: Any,
    frames: Sequence[memoryview] = (),
    *,
    copy: bool = True,
    tracker: SendTracker | None = None,
) -> bool:
    """Send the frames of one message; False when the socket would block."""
    check_open(socket)
    small = [head] if routing_id is None else [routing_id, head]
    left = len(small) + len(frames)
    try:
        for frame in small:
            left -= 1
            socket.send(frame, zmq.DONTWAIT | (zmq.SNDMORE if left else 0))
        for frame in frames:
            left -= 1
            flags = zmq.DONTWAIT | (zmq.SNDMORE if left else 0)
            lent = socket.send(frame, flags, copy=copy, track=not copy)
            if lent is not None and tracker is not None:
                tracker.lend(lent)
    except zmq.Again:
        return False  # libzmq takes or refuses a message at its first frame
    except zmq.ZMQError as error:
        raise transport_error("sending failed", error) from error
    return True


def send_value(
    socket: zmq.Socket[Any], peer: Account, kind: int, body: bytes, flags: int = 0
) -> bool:
    """Send a message without buffers and count it as one value; see ``_core.send_value``."""
    if not peer.may_send(len(body)):
        return False
    sent = send_message(
        socket, kind, body, flags=flags, request_id=peer.received, routing_id=peer.routing_id
    )
    if sent:
        peer.count_sent(len(body))
    return sent


def send_batch(
    socket: zmq.Socket[Any],
    peer: Account,
    kind: int,
    payloads: list[Any],
    start: int,
    count: int,
    nbytes: int,
) -> bool:
    """Pack payloads and send them, counted as one value; see ``_core.send_batch``."""
    if not peer.may_send(nbytes):
        return False
    chosen = payloads[start : start + count]
    if start < 0 or len(chosen) != count:
        raise BufferError("the list of payloads became shorter while it was sent")
    frame = _fallback.pack(chosen, kind=kind, request_id=peer.received)
    if len(frame) != _fallback.batch_data_start(count) + nbytes:
        raise BufferError("a payload is another than the one that was counted")
    if not _send(socket, peer.routing_id, frame):
        return False
    peer.count_sent(nbytes)
    return True


def poll(
    socket: zmq.Socket[Any],
    events: int,
    timeout: float | None = None,
    also: zmq.Socket[Any] | None = None,
) -> int:
    """Wait until the socket can receive or send; see ``_core.poll``."""
    check_open(socket)
    poller = zmq.Poller()
    poller.register(socket, events)
    if also is not None:
        poller.register(also, zmq.POLLIN)
    timeout_ms = None if timeout is None else max(0, math.ceil(timeout * 1000))
    try:
        return int(dict(poller.poll(timeout_ms)).get(socket, 0))
    except zmq.ZMQError as error:
        raise transport_error("polling failed", error) from error


#: The process in which each socket was first used.
_owners: WeakKeyDictionary[zmq.Socket[Any], int] = WeakKeyDictionary()


def check_open(socket: zmq.Socket[Any]) -> None:
    """Raise TransportError if the socket is closed, or this is a fork of its process."""
    owner = _owners.setdefault(socket, os.getpid())
    if owner != os.getpid():
        raise TransportError(
            f"the socket belongs to process {owner}, this is its fork {os.getpid()}",
            hint="open sockets after a fork, in the process that uses them",
        )
    if socket.closed:
        raise TransportError("the socket is closed", hint="open a new one")


def transport_error(what: str, error: zmq.ZMQError) -> TransportError:
    """libzmq's error as ours."""
    return TransportError(f"{what}: {error.strerror}", errno=error.errno)
