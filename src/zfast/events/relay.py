"""One endpoint for many publishers: of a host, or of an environment.

::

    publishers ═ XPUB ─▶ XSUB │ relay: memories, one for each publisher │ XPUB ─▶ SUB ═ subscribers
               ═ Beat, History ─▶ ROUTER ◀─ Hello, Ping, Ask ═

Frames pass as they are; the relay reads them to know the current truth. Nothing of a publisher
passes before its history is here, so that a relay that began anew has no gap.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from zfast.addresses import is_served, parse_endpoint
from zfast.errors import ConfigError, ProtocolError, TransportError
from zfast.events.desk import ControlDesk
from zfast.events.frames import EventFrame, decode_event, unpack_frame
from zfast.events.memory import EventMemory
from zfast.events.messages import Beat, BeatHeard, ControlMessage, History, Welcome
from zfast.events.relay_link import relay_endpoints
from zfast.events.sockets import Guard, bind_socket, open_socket
from zfast.events.topics import RESERVED

#: A publisher that was silent for so long is gone.
SILENT_S = 10.0
#: Events of a publisher whose history has not come yet.
HELD_EVENTS = 10_000
BURST = 1000
#: So many publishers that have ended are remembered: what of theirs comes late is passed over.
LEFT_PUBLISHERS = 1024
_PORT_TRIES = 50


@dataclass(slots=True)
class _Known:
    """A publisher: admitted once its history is here."""

    heard_s: float
    admitted: bool = False
    leaving_at: int = -1
    held: deque[EventFrame] = field(default_factory=lambda: deque(maxlen=HELD_EVENTS))


class Relay:
    """Forwards events, and keeps the truth for who comes late. One thread does all of it.

    Args:
        url: ``tcp://host:port``, which also takes the two ports after it; ``*`` finds three.
            Or ``ipc:///path``.
        guard: Security for tcp: which peers may publish, and what each may read.
        insecure: Allow tcp of the loopback interface that nothing guards.

    Raises:
        ConfigError, TransportError: It cannot be bound.

    Threads: ``run`` in one, ``stop`` from any.
    """

    def __init__(self, url: str, *, guard: Guard | None = None, insecure: bool = False) -> None:
        self.id = uuid.uuid4().bytes
        self._guard = guard
        self._stopped = False
        self._publishers: dict[bytes, _Known] = {}
        self._memories: dict[bytes, EventMemory] = {}
        #: Publishers that have said farewell, and how far they were.
        self._left: dict[bytes, int] = {}
        self._paths: list[str] = []
        self._control, self._subscribers, self._incoming = self._bind(url, insecure)
        self._incoming.send(b"\x01")  # everything
        self._wake = open_socket(zmq.PAIR)
        self._wake.bind(f"inproc://zfast-relay-{self.id.hex()}")
        self._woken = open_socket(zmq.PAIR)
        self._woken.connect(f"inproc://zfast-relay-{self.id.hex()}")
        self._desk = ControlDesk(
            self._control,
            Welcome(source=self.id),
            self._memories,
            threading.Lock(),
            self._subscribers.send,
            guard.granted if guard is not None else None,
        )

    def run(self) -> None:
        """Relay until ``stop``, then close."""
        poller = zmq.Poller()
        for readable in (self._incoming, self._control, self._subscribers, self._woken):
            poller.register(readable, zmq.POLLIN)
        try:
            while not self._stopped:
                poller.poll(1000)
                self._forward()
                self._grant()
                self._desk.serve(self._serve_publisher)
                self._forget_silent()
        finally:
            self._close()

    def stop(self) -> None:
        """End ``run``."""
        self._stopped = True
        with contextlib.suppress(zmq.ZMQError):
            self._wake.send(b"", zmq.DONTWAIT)

    def _forward(self) -> None:
        for _ in range(BURST):
            try:
                raw = self._incoming.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            try:
                frame = unpack_frame(raw.bytes)
            except ProtocolError:
                continue  # a publisher's marker, or a stranger's
            if frame.publisher in self._left:
                continue
            known = self._publishers.setdefault(frame.publisher, _Known(time.monotonic()))
            if known.admitted:
                self._pass(frame)
            else:
                known.held.append(frame)

    def _pass(self, frame: EventFrame) -> None:
        memory = self._memories[frame.publisher]
        if frame.counts[0] <= memory.positions([b""])[0]:
            return
        try:
            event = decode_event(frame)
        except ProtocolError:
            memory.follow(frame)
        else:
            memory.follow(frame)
            memory.keep(frame, event.run_id, final=event.is_final)
        self._subscribers.send(frame.frame)
        known = self._publishers[frame.publisher]
        if known.leaving_at >= 0 and frame.counts[0] >= known.leaving_at:
            self._let_go(frame.publisher)

    def _serve_publisher(
        self, routing_id: bytes, user_id: str, message: ControlMessage, frames: list[bytes]
    ) -> None:
        if self._guard is not None and not self._guard.may_publish(user_id):
            raise ProtocolError("a peer that may not publish sent a publisher's message")
        if isinstance(message, Beat | History) and message.publisher in self._left:
            seen = self._left[message.publisher]
            self._desk.reply(routing_id, BeatHeard(relay=self.id, seen=seen))
        elif isinstance(message, Beat):
            known = self._publishers.setdefault(message.publisher, _Known(time.monotonic()))
            known.heard_s = time.monotonic()
            memory = self._memories.get(message.publisher)
            seen = memory.positions([b""])[0] if memory is not None else 0
            self._desk.reply(routing_id, BeatHeard(relay=self.id, seen=seen))
            if message.leaving:
                known.leaving_at = message.position
                if memory is not None and seen >= message.position:
                    self._let_go(message.publisher)
        elif isinstance(message, History):
            self._admit(message.publisher, frames)

    def _admit(self, publisher: bytes, frames: list[bytes]) -> None:
        known = self._publishers.setdefault(publisher, _Known(time.monotonic()))
        self._memories.setdefault(publisher, EventMemory())
        known.admitted = True
        for raw in frames:
            frame = unpack_frame(raw)
            if frame.publisher == publisher and publisher in self._memories:
                self._pass(frame)
        while known.held and publisher in self._memories:
            self._pass(known.held.popleft())

    def _grant(self) -> None:
        """Take the subscriptions; with a guard each is granted here, or ignored."""
        while True:
            try:
                raw = self._subscribers.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            if self._guard is None:
                continue
            wanted, topic = raw.bytes[:1], raw.bytes[1:]
            try:
                granted = self._guard.granted(str(raw.get("User-Id")))
            except zmq.ZMQError:
                continue  # of a peer that was not authenticated
            allowed = topic.startswith(RESERVED) or any(
                topic.startswith(prefix) for prefix in granted
            )
            if wanted == b"\0":
                self._subscribers.setsockopt(zmq.UNSUBSCRIBE, topic)
            elif allowed:
                self._subscribers.setsockopt(zmq.SUBSCRIBE, topic)

    def _forget_silent(self) -> None:
        earliest = time.monotonic() - SILENT_S
        for publisher in [
            key for key, known in self._publishers.items() if known.heard_s < earliest
        ]:
            self._forget(publisher)

    def _let_go(self, publisher: bytes) -> None:
        self._left[publisher] = self._publishers[publisher].leaving_at
        if len(self._left) > LEFT_PUBLISHERS:
            del self._left[next(iter(self._left))]
        self._forget(publisher)

    def _forget(self, publisher: bytes) -> None:
        self._publishers.pop(publisher, None)
        self._memories.pop(publisher, None)

    def _bind(
        self, url: str, insecure: bool
    ) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], zmq.Socket[bytes]]:
        # With a guard it is the guard that judges tcp.
        if self._guard is None:
            endpoint = parse_endpoint(url, insecure=insecure)
            if is_served(endpoint):
                raise ConfigError(f"a relay serves {url} already", hint="choose another path")
        host, _, port = url.rpartition(":")
        if not url.startswith("tcp://") or port != "*":
            return self._bind_three(url, insecure)
        for _ in range(_PORT_TRIES):
            try:
                return self._bind_three(f"{host}:{random.randrange(20_000, 60_000)}", insecure)
            except TransportError:
                continue
        raise TransportError(f"no three ports in a row are free at {host}")

    def _bind_three(
        self, url: str, insecure: bool
    ) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], zmq.Socket[bytes]]:
        with contextlib.ExitStack() as undo:
            opened = []
            for kind, each in zip(
                (zmq.ROUTER, zmq.XPUB, zmq.XSUB), relay_endpoints(url), strict=True
            ):
                made = undo.enter_context(open_socket(kind))
                if kind == zmq.XPUB and self._guard is not None:
                    made.setsockopt(zmq.XPUB_MANUAL, 1)
                bind_socket(made, each, guard=self._guard, insecure=insecure)
                opened.append(made)
            undo.pop_all()
        self.endpoint = url
        if url.startswith("ipc://"):
            self._paths = [each.removeprefix("ipc://") for each in relay_endpoints(url)]
        control, subscribers, incoming = opened
        return control, subscribers, incoming

    def _close(self) -> None:
        for opened in (
            self._control, self._subscribers, self._incoming, self._woken, self._wake
        ):  # fmt: skip
            opened.close(100)
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(Path(path))
