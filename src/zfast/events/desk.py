"""The side of a publisher, or a relay, at which subscribers join and catch up."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from threading import Lock

import zmq

from zfast.errors import AccessDeniedError, ProtocolError
from zfast.events.memory import EventMemory
from zfast.events.messages import (
    SNAPSHOT_FRAMES,
    Ask,
    Bye,
    ControlMessage,
    Hello,
    Marker,
    Ping,
    Positions,
    Refusal,
    Snapshot,
    Welcome,
    decode_message,
    encode_message,
)
from zfast.events.relay_doors import key_of
from zfast.events.topics import RESERVED

logger = logging.getLogger("zfast.events")

#: A subscriber that was not heard of for so long is gone, or stuck.
PEER_S = 5.0


def marker_frame(nonce: bytes, marker: Marker) -> bytes:
    """A Marker as it travels among the events."""
    return RESERVED + nonce + b"\0" + encode_message(marker)


@dataclass(slots=True)
class _Peer:
    nonce: bytes
    prefixes: list[bytes]
    heard_s: float
    has_asked: bool = False


class ControlDesk:
    """Answers subscribers. Threads: that of its socket, but for ``memories``, read under ``lock``.

    Args:
        control: A ROUTER, bound.
        welcome: What a Hello is answered with.
        memories: For each publisher, what is remembered of it.
        lock: Held while memories are read; and while a marker is sent, so that it comes after all
            events that its counts contain.
        send: Sends one frame the way that the events go.
        check: Raises ``AccessDeniedError`` if the holder of a key may not read a prefix; None is
            everything for everyone.
        take_token: Takes a message by its routing id, key and first frame, if it is a token.
        left: Which of the publishers have gone.
    """

    def __init__(
        self,
        control: zmq.Socket[bytes],
        welcome: Welcome,
        memories: Mapping[bytes, EventMemory],
        lock: Lock,
        send: Callable[[bytes], None],
        check: Callable[[str, bytes], None] | None = None,
        take_token: Callable[[bytes, str, bytes], bool] | None = None,
        left: Collection[bytes] = (),
    ) -> None:
        self._control = control
        self._welcome = welcome
        self._memories = memories
        self._left = left
        self._lock = lock
        self._send = send
        self._check_prefix = check
        self._take_token = take_token
        self._peers: dict[bytes, _Peer] = {}
        #: Subscribers that were told of us and have not come yet.
        self.expected: set[str] = set()
        self._ending = False

    def serve(
        self, other: Callable[[bytes, str, ControlMessage, list[bytes]], None] | None = None
    ) -> None:
        """Answer everything that lies in the socket.

        Args:
            other: Takes the routing id, key, message and frames of what is not for a desk.
        """
        while True:
            try:
                frames = self._control.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            routing_id, *rest = (frame.bytes for frame in frames)
            try:
                if not rest:
                    raise ProtocolError("a control message has no frame")
                key = key_of(frames[-1])
                if self._take_token is not None and self._take_token(routing_id, key, rest[0]):
                    continue
                message = decode_message(rest[0])
                if not self._answer(routing_id, key, message) and other is not None:
                    other(routing_id, key, message, rest[1:])
            except ProtocolError as error:
                logger.debug("a control message was refused: %s", error)
            except AccessDeniedError as error:
                self._peers.pop(routing_id, None)
                self.reply(routing_id, Refusal(reason=error.message))
            except zmq.ContextTerminated:
                raise
            except Exception:
                # Whatever one peer sends, and we did not foresee: it must not end all the others'.
                logger.exception("a control message was dropped")

    def end(self) -> None:
        """Tell every subscriber that no more events come."""
        self._ending = True
        for peer in self._peers.values():
            self._mark(peer)

    @property
    def waited_for(self) -> bool:
        """Whether a subscriber that lives has not yet said that it has everything."""
        earliest = time.monotonic() - PEER_S
        return bool(self.expected) or any(peer.heard_s > earliest for peer in self._peers.values())

    @property
    def is_heard(self) -> bool:
        """Whether all subscribers that we know of have a place among the events."""
        return not self.expected and all(peer.has_asked for peer in [*self._peers.values()])

    def reply(self, routing_id: bytes, message: ControlMessage, *frames: bytes) -> None:
        """Send one message; dropped when the peer has gone, or does not read: it will ask again."""
        with contextlib.suppress(zmq.Again):
            self._control.send_multipart(
                [routing_id, encode_message(message), *frames], zmq.DONTWAIT
            )

    def _answer(self, routing_id: bytes, key: str, message: ControlMessage) -> bool:
        if isinstance(message, Hello):
            self.expected.discard(message.listener)
            # It is waited for from now on, though it has no place among the events yet.
            self._peers[routing_id] = _Peer(b"", [], time.monotonic())
            self._forget_silent()
            self.reply(routing_id, self._welcome)
        elif isinstance(message, Ping):
            if message.source != self._welcome.source:
                self.reply(routing_id, self._welcome)
                return True
            self._check(key, message.prefixes)
            before = self._peers.get(routing_id)
            has_asked = before is not None and before.has_asked
            peer = _Peer(message.nonce, message.prefixes, time.monotonic(), has_asked)
            self._peers[routing_id] = peer
            self._forget_silent()
            self._mark(peer)
        elif isinstance(message, Ask):
            self._check(key, message.prefixes)
            self._tell(routing_id, message)
            if routing_id in self._peers:
                self._peers[routing_id].has_asked = True
        elif isinstance(message, Bye):
            self._peers.pop(routing_id, None)
        else:
            return False
        return True

    def _mark(self, peer: _Peer) -> None:
        if not peer.nonce:
            return
        with self._lock:
            positions: Positions = {
                publisher: memory.positions(peer.prefixes)
                for publisher, memory in self._memories.items()
            }
            marker = Marker(
                source=self._welcome.source,
                positions=positions,
                left=[*self._left],
                ending=self._ending,
            )
            self._send(marker_frame(peer.nonce, marker))

    def _tell(self, routing_id: bytes, ask: Ask) -> None:
        frames: list[bytes] = []
        positions: Positions = {}
        n = len(ask.prefixes)
        with self._lock:
            for publisher, memory in self._memories.items():
                seen = ask.seen.get(publisher)
                if seen is None and ask.first:
                    frames += memory.truth(ask.prefixes) if ask.truth else []
                else:
                    seen = seen if seen is not None and len(seen) == n else [0] * n
                    frames += memory.since(ask.prefixes, seen)
                positions[publisher] = memory.positions(ask.prefixes)
            left = [*self._left]
        for start in range(0, len(frames), SNAPSHOT_FRAMES):
            part = frames[start : start + SNAPSHOT_FRAMES]
            self.reply(routing_id, Snapshot(number=ask.number), *part)
        self.reply(routing_id, Snapshot(number=ask.number, positions=positions, left=left))

    def _check(self, key: str, prefixes: list[bytes]) -> None:
        if self._check_prefix is not None:
            for prefix in prefixes:
                self._check_prefix(key, prefix)

    def _forget_silent(self) -> None:
        earliest = time.monotonic() - 4 * PEER_S
        for routing_id in [key for key, peer in self._peers.items() if peer.heard_s < earliest]:
            del self._peers[routing_id]
