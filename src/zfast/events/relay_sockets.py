"""A relay's three sockets, bound in a row. Threads: the relay's, but for ``wake``."""

from __future__ import annotations

import contextlib
import os
import random
import socket

import zmq

from zfast.addresses import parse_endpoint
from zfast.errors import TransportError
from zfast.events.relay_doors import LISTENING, PUBLISHING, RelayDoors, key_of
from zfast.events.relay_link import relay_endpoints
from zfast.events.sockets import bind_socket, open_socket
from zfast.security.server_security import ServerSecurity

_PORT_TRIES = 50
_KINDS = (
    (zmq.ROUTER, LISTENING | PUBLISHING),
    (zmq.XPUB, LISTENING),
    (zmq.XSUB, PUBLISHING),
)


class RelaySockets:
    """See ``Relay`` for the arguments.

    Attributes:
        control: Hello, Ping and Ask of subscribers; Beat and History of publishers.
        subscribers: Events go out, subscriptions come in.
        incoming: Publishers' events.
        woken: Readable after ``wake``.
        doors: Who may come in; None where nobody is asked.
        endpoint: The control socket's, by which the relay is named.

    Raises:
        ConfigError, TransportError: They cannot be bound.
    """

    def __init__(self, url: str, *, security: ServerSecurity | None, insecure: bool) -> None:
        endpoint = parse_endpoint(
            url, insecure=insecure, guarded=security is not None, between_processes=True
        )
        self._security = security if endpoint.scheme == "tcp" else None
        self._insecure = insecure
        self._paths: list[str] = []
        self.doors: RelayDoors | None = None
        self.woken, self._waker = socket.socketpair()
        self.woken.setblocking(False)
        self._waker.setblocking(False)
        try:
            self.endpoint = self._bind(url)
        except BaseException:
            self.woken.close()
            self._waker.close()
            raise
        self.incoming.send(b"\x01")  # everything

    def wake(self) -> None:
        """Have ``woken`` be readable. Threads: any."""
        with contextlib.suppress(OSError):  # full, or closed in this moment
            self._waker.send(b"\0")

    def maintain(self) -> None:
        """Take what woke us, serve the keys that are valid now, and answer who brought a token."""
        with contextlib.suppress(BlockingIOError):
            self.woken.recv(4096)
        if self.doors is not None:
            self.doors.maintain()

    def grant_subscriptions(self) -> None:
        """Take the subscriptions that came; with doors each is granted here, or ignored."""
        while True:
            try:
                frame = self.subscribers.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            if self.doors is None:
                continue
            wanted, topic = frame.bytes[:1], frame.bytes[1:]
            # Both are of the connection that the message came by.
            if wanted == b"\0":
                self.subscribers.setsockopt(zmq.UNSUBSCRIBE, topic)
            elif wanted == b"\1" and self.doors.grants(key_of(frame), topic):
                self.subscribers.setsockopt(zmq.SUBSCRIBE, topic)

    def close(self) -> None:
        """Close them."""
        if self.doors is not None:
            self.doors.close()
        for opened in (self.control, self.subscribers, self.incoming):
            opened.close(100)
        self.woken.close()
        self._waker.close()
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _bind(self, url: str) -> str:
        host, _, port = url.rpartition(":")
        if not url.startswith("tcp://") or port != "*":
            return self._bind_three(url)
        for _ in range(_PORT_TRIES):
            try:
                return self._bind_three(f"{host}:{random.randrange(20_000, 60_000)}")
            except TransportError:
                continue
        raise TransportError(f"no three ports in a row are free at {host}")

    def _bind_three(self, url: str) -> str:
        endpoints = relay_endpoints(url)
        doors = RelayDoors(self._security, self.wake) if self._security is not None else None
        with contextlib.ExitStack() as undo:
            opened = []
            if doors is not None:
                undo.callback(doors.close)
            for (kind, verbs), endpoint in zip(_KINDS, endpoints, strict=True):
                made = undo.enter_context(open_socket(kind))
                if doors is not None:
                    doors.bind(made, endpoint, verbs)
                else:
                    bind_socket(made, endpoint, insecure=self._insecure)
                opened.append(made)
            undo.pop_all()
        self.control, self.subscribers, self.incoming = opened
        self.doors = doors
        if url.startswith("ipc://"):
            self._paths = [endpoint.removeprefix("ipc://") for endpoint in endpoints]
        return url
