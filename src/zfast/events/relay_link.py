"""A publisher's link to a relay: that it lives, how far it is, and what the relay lacks."""

from __future__ import annotations

import contextlib
import logging
import time
from threading import Lock

import zmq

from zfast.errors import AccessDeniedError, ConfigError, ProtocolError, ZfastError
from zfast.events.memory import EventMemory
from zfast.events.messages import (
    SNAPSHOT_FRAMES,
    Beat,
    BeatHeard,
    History,
    Refusal,
    decode_message,
    encode_message,
)
from zfast.events.sockets import Handshakes, connect_socket, open_socket
from zfast.security.client_security import ClientSecurity

logger = logging.getLogger("zfast.events")

BEAT_S = 1.0
#: While there is no connection it is tried so often at first.
FIRST_PAUSE_S = 0.02


def relay_endpoints(url: str) -> tuple[str, str, str]:
    """A relay's endpoints: for control, which names it; for subscribers; for publishers.

    On tcp they are three ports in a row, on ipc three paths.

    Raises:
        ConfigError: The endpoint has no port that two others can follow.
    """
    if not url.startswith("tcp://"):
        return url, f"{url}.events", f"{url}.publish"
    host, _, port = url.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65534:
        raise ConfigError(
            f"{url!r} names no relay", hint="tcp://host:port, with a port below 65534"
        )
    return url, f"{host}:{int(port) + 1}", f"{host}:{int(port) + 2}"


class RelayLink:
    """Threads: the publisher's desk, but for ``connect_events``; ``memory`` is read under ``lock``.

    Raises:
        ConfigError: The endpoint is malformed, or is tcp that nothing guards.
    """

    def __init__(
        self,
        publisher: bytes,
        url: str,
        memory: EventMemory,
        lock: Lock,
        security: ClientSecurity | None,
        insecure: bool,
    ) -> None:
        self._publisher = publisher
        self._memory = memory
        self._lock = lock
        self._security, self._insecure = security, insecure
        self._handshakes: Handshakes | None = None
        self._url = url
        _, _, self._events_url = relay_endpoints(url)
        self.control = open_socket(zmq.DEALER)
        self.control.immediate = True
        try:
            if security is not None:
                self._handshakes = Handshakes(self.control, url, security)
            else:
                connect_socket(self.control, url, insecure=insecure)
        except BaseException:
            self.close()
            raise
        self._relay = b""
        self._heard = -1
        self._lacking_since = -1
        self._leaving = False
        self._next_beat_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._has_told = False

    def connect_events(self, events: zmq.Socket[bytes]) -> None:
        """Connect the socket of the events, before its thread begins."""
        connect_socket(events, self._events_url, security=self._security, insecure=self._insecure)

    @property
    def waited_for(self) -> bool:
        """Whether the relay, if there is one, has not yet said that it has everything."""
        return bool(self._relay) and self._heard < self._position()

    def beat(self) -> int:
        """Send a beat if it is time; when to call again, in ms."""
        now = time.monotonic()
        if self._handshakes is not None:
            self._tell(self._handshakes.error())
        if now >= self._next_beat_s:
            sent = self._send(
                Beat(publisher=self._publisher, position=self._position(), leaving=self._leaving)
            )
            # Not connected yet: soon again, but not for a relay that is not there.
            self._pause_s = BEAT_S if sent else min(BEAT_S, self._pause_s * 1.5)
            self._next_beat_s = now + self._pause_s
            if sent:
                self._pause_s = FIRST_PAUSE_S
        return max(1, int((self._next_beat_s - now) * 1000))

    def leave(self) -> None:
        """Tell the relay that nothing more comes."""
        self._leaving = True
        self._next_beat_s = 0.0
        self.beat()

    def read(self) -> None:
        """Take the relay's answers, and send it what it lacks."""
        while True:
            try:
                frames = self.control.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                message = decode_message(frames[0])
            except ProtocolError:
                continue
            if isinstance(message, BeatHeard):
                self._take(message)
            elif isinstance(message, Refusal):
                self._tell(AccessDeniedError(message.reason))
        if self._leaving:
            self.beat()

    def close(self) -> None:
        """Close its socket."""
        if self._handshakes is not None:
            self._handshakes.close()
        self.control.close(0)

    def _tell(self, error: ZfastError | None) -> None:
        if error is not None and not self._has_told:
            self._has_told = True
            logger.error("states do not reach the relay: %s", error)

    def _take(self, answer: BeatHeard) -> None:
        is_new = answer.relay != self._relay
        self._relay = answer.relay
        self._heard = answer.seen
        # Once it may be that the events are on their way; the second time they are not.
        if is_new or answer.seen == self._lacking_since:
            self._send_history(answer.seen)
        self._lacking_since = answer.seen if answer.seen < self._position() else -1
        if self._leaving and self.waited_for:
            self._next_beat_s = min(self._next_beat_s, time.monotonic() + 0.05)

    def _send_history(self, seen: int) -> None:
        with self._lock:
            frames = self._memory.since([b""], [seen])
        for start in range(0, max(1, len(frames)), SNAPSHOT_FRAMES):
            end = start + SNAPSHOT_FRAMES
            part = History(publisher=self._publisher, more=end < len(frames))
            if not self._send(part, *frames[start:end]):
                return  # the relay lets nothing pass until it has all, and will be behind again

    def _position(self) -> int:
        with self._lock:
            return self._memory.positions([b""])[0]

    def _send(self, message: Beat | History, *frames: bytes) -> bool:
        with contextlib.suppress(zmq.Again):
            self.control.send_multipart([encode_message(message), *frames], zmq.DONTWAIT)
            return True
        return False
