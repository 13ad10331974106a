"""One source's sockets, and when to speak on them. Threads: one at a time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import zmq

from zfast.errors import AccessDeniedError, ProtocolError, ZfastError
from zfast.events.event import Event
from zfast.events.follower import Follower, Phase
from zfast.events.frames import EventFrame, unpack_frame
from zfast.events.messages import (
    Bye,
    ControlMessage,
    Hello,
    Marker,
    Refusal,
    Snapshot,
    Welcome,
    decode_message,
    encode_message,
)
from zfast.events.relay_link import relay_endpoints
from zfast.events.sockets import Handshakes, connect_socket, is_readable, open_socket
from zfast.events.topics import RESERVED
from zfast.owned_folder import is_owned
from zfast.security.client_security import ClientSecurity

logger = logging.getLogger("zfast.events")

#: While a source is being joined it is spoken to so often, then so often to see whether it lives.
JOIN_S = 0.02
PING_S = 1.0
#: A question without an answer is asked again.
ANSWER_S = 1.0
#: A local source was silent for so long: does its process live?
OWNER_S = 2.0
#: A source that was silent for so long is out of reach: whoever is there now is asked anew.
SILENT_S = 3.5
#: Events that are read before others have their turn.
BURST = 2000


class Feed:
    """Follows one source.

    Args:
        url: Its control endpoint.
        is_local: It is in the user's folder, and ends with its process.
        listener: By which name a publisher may have told us of itself.
        security: Keys for tcp.

    Attributes:
        refusal: Why no more can come: our key, or what was asked for, is refused.
    """

    def __init__(
        self,
        url: str,
        prefixes: Sequence[bytes],
        *,
        is_new: bool,
        truth: bool,
        is_local: bool,
        listener: str = "",
        security: ClientSecurity | None = None,
        insecure: bool = False,
    ) -> None:
        self.url = url
        self._prefixes = prefixes
        self._follower = Follower(prefixes, is_new=is_new, truth=truth)
        self._folder = Path(url.removeprefix("ipc://")).parent if is_local else None
        self._listener = listener
        self._security, self._insecure = security, insecure
        self.refusal: ZfastError | None = None
        self._handshakes: Handshakes | None = None
        self.control = open_socket(zmq.DEALER)
        self.control.immediate = True
        self.events: zmq.Socket[bytes] | None = None
        try:
            if security is not None:
                self._handshakes = Handshakes(self.control, url, security)
            else:
                connect_socket(self.control, url, insecure=insecure)
        except BaseException:
            self._close_sockets(0)
            raise
        self._heard_s = time.monotonic()
        self._next_s = 0.0
        self._asked_s = 0.0
        self._told_version = False

    @property
    def is_live(self) -> bool:
        """Whether events come as they happen."""
        return self._follower.phase is Phase.LIVE

    @property
    def is_done(self) -> bool:
        """Whether the source has ended, and nothing more comes."""
        return self._follower.phase is Phase.DONE

    @property
    def due_s(self) -> float:
        """When to call ``tick``, on the monotonic clock."""
        return self._next_s

    @property
    def sources(self) -> list[zmq.Socket[bytes]]:
        """Those that are readable when there is something to ``read``."""
        news = self._handshakes.news if self._handshakes is not None else None
        return [source for source in (self.control, self.events, news) if source is not None]

    def read(self, readable: Collection[object]) -> list[Event]:
        """Take what has come to those ``sources`` that are readable."""
        self._look_at_handshakes()
        events = self._read_control() if self.control in readable else []
        if self.events is not None and self.events in readable:
            events += self._read_events(self.events)
        self._send_ask()
        if self.is_done:
            self._say(Bye(nonce=self._follower.nonce))
        return events

    def tick(self, now: float) -> list[Event]:
        """Say what is due."""
        if now < self._next_s:
            return []
        self._look_at_handshakes()
        follower = self._follower
        if self._folder is not None and now - self._heard_s > OWNER_S:
            if is_owned(self._folder):
                self._heard_s = now  # it lives, and is busy, or is stopped
            elif self.events is None or not is_readable(self.events):
                return follower.leave()
        if now - self._heard_s > SILENT_S and follower.phase is not Phase.GREETING:
            follower.source = b""
            follower.phase = Phase.GREETING
        if follower.phase is Phase.GREETING:
            self._say(Hello(listener=self._listener))
        else:
            self._say(follower.ping())
            if follower.phase is Phase.ASKING and now - self._asked_s > ANSWER_S:
                follower.ask_again()
                self._send_ask()
        is_joining = follower.phase in (Phase.GREETING, Phase.JOINING)
        away_s = now - self._heard_s
        self._next_s = now + (max(JOIN_S, min(PING_S, away_s / 10)) if is_joining else PING_S)
        return []

    def _look_at_handshakes(self) -> None:
        if self._handshakes is not None:
            self.refusal = self._handshakes.error() or self.refusal

    def leave(self) -> list[Event]:
        """The source is gone, says who knows."""
        return self._follower.leave()

    def close(self) -> None:
        """Say farewell and close the sockets."""
        self._say(Bye(nonce=self._follower.nonce))
        self._close_sockets(100)

    def _close_sockets(self, linger_ms: int) -> None:
        if self._handshakes is not None:
            self._handshakes.close()
        self.control.close(linger_ms)
        if self.events is not None:
            self.events.close(0)

    def _read_control(self) -> list[Event]:
        events: list[Event] = []
        while is_readable(self.control):
            first, *frames = self.control.recv_multipart(zmq.DONTWAIT)
            try:
                message = decode_message(first)
            except ProtocolError as error:
                self._tell(error)
                continue
            self._heard_s = time.monotonic()
            if isinstance(message, Welcome):
                if self._follower.welcome(message):
                    self._connect_events(message)
            elif isinstance(message, Refusal):
                self.refusal = AccessDeniedError(f"{self.url} refused us: {message.reason}")
            elif isinstance(message, Snapshot):
                events += self._follower.answer(message, self._unpack_all(frames))
        return events

    def _read_events(self, source: zmq.Socket[bytes]) -> list[Event]:
        events: list[Event] = []
        take = self._follower.take
        for _ in range(BURST):
            if not is_readable(source):
                break
            frame = source.recv(zmq.DONTWAIT)
            # Events too: we may have been away for long, and the source has not been since.
            self._heard_s = time.monotonic()
            if frame.startswith(RESERVED):
                try:
                    message = decode_message(frame.partition(b"\0")[2])
                except ProtocolError:
                    continue
                if isinstance(message, Marker):
                    events += self._follower.mark(message)
                    self._next_s = max(self._next_s, self._heard_s + PING_S)
                continue
            try:
                events += take(unpack_frame(frame))
            except ProtocolError as error:
                self._tell(error)
        return events

    def _connect_events(self, welcome: Welcome) -> None:
        if self.events is not None:
            self.events.close(0)
        url = welcome.events or relay_endpoints(self.url)[1]
        self.events = open_socket(zmq.SUB)
        for prefix in self._prefixes:
            self.events.subscribe(prefix)
        # The last of them: once its markers come, so do the events.
        self.events.subscribe(RESERVED + self._follower.nonce)
        connect_socket(self.events, url, security=self._security, insecure=self._insecure)
        self._next_s = 0.0

    def _send_ask(self) -> None:
        ask, self._follower.to_ask = self._follower.to_ask, None
        if ask is not None:
            self._say(ask)
            self._asked_s = time.monotonic()

    def _unpack_all(self, frames: list[bytes]) -> list[EventFrame]:
        unpacked = []
        for frame in frames:
            with contextlib.suppress(ProtocolError):
                unpacked.append(unpack_frame(frame))
        return unpacked

    def _say(self, message: ControlMessage) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self.control.send(encode_message(message), zmq.DONTWAIT)

    def _tell(self, error: ProtocolError) -> None:
        if not self._told_version:
            self._told_version = True
            logger.warning("events from %s are skipped: %s", self.url, error)
