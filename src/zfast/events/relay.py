"""One endpoint for many publishers: of a host, or of an environment.

::

    publishers ═ XPUB ─▶ XSUB │ relay: memories, one for each publisher │ XPUB ─▶ SUB ═ subscribers
               ═ Beat, History ─▶ ROUTER ◀─ Hello, Ping, Ask ═

Frames pass as they are; the relay reads them to know the current truth. Nothing of a publisher
passes before its history is here, so that a relay that began anew has no gap; nor does anything
that comes after a loss, until the publisher has sent what was lost.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field

import zmq

from zfast.errors import AccessDeniedError, ProtocolError
from zfast.events.departed import Departed
from zfast.events.desk import ControlDesk
from zfast.events.frames import EventFrame, decode_event, unpack_frame
from zfast.events.memory import EventMemory
from zfast.events.messages import Beat, BeatHeard, ControlMessage, History, Welcome
from zfast.events.relay_doors import key_of
from zfast.events.relay_sockets import RelaySockets
from zfast.security.server_security import ServerSecurity

logger = logging.getLogger("zfast.events")

#: A publisher that was silent for so long is gone.
SILENT_S = 10.0
#: Events of a publisher whose history has not come yet.
HELD_EVENTS = 10_000
BURST = 1000
#: So many publishers that have ended are remembered: what of theirs comes late is passed over.
LEFT_PUBLISHERS = 1024
#: One more is not heard.
PUBLISHERS = 4096


@dataclass(slots=True)
class _Known:
    """A publisher, under the key that its connection proved: admitted once its history is here."""

    key: str
    heard_s: float
    admitted: bool = False
    leaving_at: int = -1
    held: deque[EventFrame] = field(default_factory=lambda: deque(maxlen=HELD_EVENTS))


class Relay:
    """Forwards events, and keeps the truth for who comes late. One thread does all of it.

    Args:
        url: ``tcp://host:port``, which also takes the two ports after it; ``*`` finds three.
            Or ``ipc:///path``, for one user.
        security: Keys for tcp, and who may do what; the relay is for its environment, and lets
            nothing of another one pass. Stays the caller's to close.
        insecure: Allow tcp of the loopback interface that nothing guards.

    Raises:
        ConfigError, TransportError: It cannot be bound.

    Threads: ``run`` in one, ``stop`` from any.
    """

    def __init__(
        self, url: str, *, security: ServerSecurity | None = None, insecure: bool = False
    ) -> None:
        self.id = uuid.uuid4().bytes
        self._stopped = False
        self._publishers: dict[bytes, _Known] = {}
        self._memories: dict[bytes, EventMemory] = {}
        #: Publishers that have said farewell, and how far they were.
        self._left: dict[bytes, int] = {}
        self._departed = Departed(self._memories)
        self._sockets = RelaySockets(url, security=security, insecure=insecure)
        self._doors = self._sockets.doors
        self.endpoint = self._sockets.endpoint
        self._desk = ControlDesk(
            self._sockets.control,
            Welcome(source=self.id),
            self._memories,
            threading.Lock(),
            self._sockets.subscribers.send,
            self._doors.check_prefix if self._doors is not None else None,
            self._doors.take_token if self._doors is not None else None,
            self._departed.publishers,
        )

    def run(self) -> None:
        """Relay until ``stop``, then close."""
        sockets, poller = self._sockets, zmq.Poller()
        for readable in (sockets.incoming, sockets.control, sockets.subscribers, sockets.woken):
            poller.register(readable, zmq.POLLIN)
        try:
            while not self._stopped:
                poller.poll(1000)
                sockets.maintain()
                self._forward()
                sockets.grant_subscriptions()
                self._desk.serve(self._serve_publisher)
                self._forget_silent()
                self._departed.forget_old()
        finally:
            sockets.close()

    def stop(self) -> None:
        """End ``run``."""
        self._stopped = True
        self._sockets.wake()

    def _forward(self) -> None:
        for _ in range(BURST):
            try:
                raw = self._sockets.incoming.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            try:
                frame = unpack_frame(raw.bytes)
                if frame.publisher in self._left:
                    continue
                known = self._meet(frame.publisher, key_of(raw))
            except (ProtocolError, AccessDeniedError):
                continue  # a publisher's marker, or a stranger's
            if known.admitted:
                self._follow(known, frame)
            else:
                known.held.append(frame)

    def _follow(self, known: _Known, frame: EventFrame) -> None:
        """Pass what is live, unless something before it was lost on its way: the publisher has it.

        With the next beats it sees how far we are, and sends its history from there. Whatever that
        lacks it has forgotten, so it is never waited for twice.
        """
        if frame.counts[0] > self._memories[frame.publisher].positions([b""])[0] + 1:
            known.admitted = False
            known.held.appendleft(frame)
        else:
            self._pass(frame)

    def _meet(self, publisher: bytes, key: str) -> _Known:
        """A publisher speaks, under a key: the one that it spoke under first.

        Raises:
            AccessDeniedError: It may not publish, or speaks for another.
            ProtocolError: There are too many.
        """
        if self._doors is not None:
            self._doors.check_publisher(key)
        known = self._publishers.get(publisher)
        if known is None:
            if len(self._publishers) >= PUBLISHERS:
                raise ProtocolError(f"there are {PUBLISHERS} publishers already")
            self._departed.forget(publisher)  # it is back, and tells all of it again
            known = self._publishers[publisher] = _Known(key, time.monotonic())
        elif known.key != key:
            raise AccessDeniedError("a publisher's name is another key's")
        return known

    def _pass(self, frame: EventFrame) -> None:
        try:
            self._pass_on(frame)
        except zmq.ContextTerminated:
            raise
        except Exception:
            # Whatever is wrong with one event, and we did not foresee: it must not end all others.
            logger.exception("an event was dropped")

    def _pass_on(self, frame: EventFrame) -> None:
        memory = self._memories[frame.publisher]
        if frame.counts[0] <= memory.positions([b""])[0]:
            return
        is_known = memory.knows(frame.topic)
        memory.follow(frame)
        if not is_known:
            return
        if self._doors is not None and not frame.topic.startswith(self._doors.root):
            self._let_go_if_done(frame)  # of another environment: counted, and told nobody
            return
        with contextlib.suppress(ProtocolError):  # then it is counted, and not remembered
            event = decode_event(frame)
            memory.keep(frame, event.run_id, final=event.is_final)
        self._sockets.subscribers.send(frame.frame)
        self._let_go_if_done(frame)

    def _serve_publisher(
        self, routing_id: bytes, key: str, message: ControlMessage, frames: list[bytes]
    ) -> None:
        if isinstance(message, Beat | History) and message.publisher in self._left:
            seen = self._left[message.publisher]
            self._desk.reply(routing_id, BeatHeard(relay=self.id, seen=seen))
        elif isinstance(message, Beat):
            known = self._meet(message.publisher, key)
            known.heard_s = time.monotonic()
            memory = self._memories.get(message.publisher)
            seen = memory.positions([b""])[0] if memory is not None else 0
            self._desk.reply(routing_id, BeatHeard(relay=self.id, seen=seen))
            if message.leaving:
                known.leaving_at = message.position
                if memory is not None and seen >= message.position:
                    self._let_go(message.publisher)
        elif isinstance(message, History):
            self._admit(self._meet(message.publisher, key), message, frames)

    def _admit(self, known: _Known, part: History, frames: list[bytes]) -> None:
        publisher = part.publisher
        self._memories.setdefault(publisher, EventMemory())
        # Whatever is live comes after the last part: a count that is passed never comes back.
        known.admitted = not part.more
        for raw in frames:
            frame = unpack_frame(raw)
            if frame.publisher == publisher and publisher in self._publishers:
                self._pass(frame)
        while known.admitted and known.held and publisher in self._publishers:
            self._follow(known, known.held.popleft())

    def _forget_silent(self) -> None:
        now = time.monotonic()
        for publisher, known in list(self._publishers.items()):
            if now - known.heard_s <= SILENT_S:
                continue
            memory = self._memories.get(publisher)
            if not known.held or memory is None:
                if memory is not None:
                    memory.end_runs()
                self._forget(publisher)
                continue
            # What it was to send again nobody has now. The rest passes, and is here for who asks.
            known.admitted, known.heard_s = True, now
            while known.held and publisher in self._publishers:
                self._pass(known.held.popleft())

    def _let_go_if_done(self, frame: EventFrame) -> None:
        known = self._publishers[frame.publisher]
        if known.leaving_at >= 0 and frame.counts[0] >= known.leaving_at:
            self._let_go(frame.publisher)

    def _let_go(self, publisher: bytes) -> None:
        self._left[publisher] = self._publishers[publisher].leaving_at
        if len(self._left) > LEFT_PUBLISHERS:
            del self._left[next(iter(self._left))]
        self._forget(publisher)

    def _forget(self, publisher: bytes) -> None:
        del self._publishers[publisher]
        self._departed.keep(publisher)
