"""How the events' sockets are opened. One place, so that security has one place to come in."""

from __future__ import annotations

from typing import Protocol

import zmq

from zfast.addresses import parse_endpoint
from zfast.context import process_context
from zfast.errors import TransportError

#: Events that wait for one subscriber; those beyond are dropped, and it is told.
SUBSCRIBER_HWM = 10_000
#: Events that wait in the subscriber's own process.
RECEIVE_HWM = 50_000
#: No frame of ours is larger: a state's message is cut.
MAX_FRAME_NBYTES = 1 << 20
#: How long a client waits before it connects again, at first and at most.
RECONNECT_MS = 20
RECONNECT_MAX_MS = 1000


class Guard(Protocol):
    """What security puts between the events' sockets and other hosts."""

    def bind(self, guarded: zmq.Socket[bytes], url: str) -> str:
        """Guard and bind a socket; the endpoint, with the port that the system chose."""

    def connect(self, guarded: zmq.Socket[bytes], url: str) -> None:
        """Guard a socket and connect it."""

    def may_publish(self, user_id: str) -> bool:
        """Whether the holder of a key may publish events here."""

    def granted(self, user_id: str) -> list[bytes]:
        """The prefixes that the holder of a key may read; ``[b""]`` is everything."""


def open_socket(kind: int) -> zmq.Socket[bytes]:
    """A socket of this process's context, bounded as the events' sockets are."""
    opened: zmq.Socket[bytes] = process_context().socket(kind)
    opened.linger = 0
    opened.sndhwm = SUBSCRIBER_HWM
    opened.rcvhwm = RECEIVE_HWM
    opened.maxmsgsize = MAX_FRAME_NBYTES
    opened.reconnect_ivl = RECONNECT_MS
    opened.reconnect_ivl_max = RECONNECT_MAX_MS
    return opened


def bind_socket(
    opened: zmq.Socket[bytes], url: str, *, guard: Guard | None = None, insecure: bool = False
) -> str:
    """Bind; the endpoint, with the port that the system chose.

    Raises:
        ConfigError: The endpoint is malformed, or is tcp that nothing guards.
        TransportError: It cannot be bound; ``errno`` says why.
    """
    if guard is not None and url.startswith("tcp:"):
        return guard.bind(opened, url)
    parse_endpoint(url, insecure=insecure)
    try:
        opened.bind(url)
    except zmq.ZMQError as error:
        raise TransportError(f"cannot bind {url}: {error}", errno=error.errno) from error
    return opened.getsockopt_string(zmq.LAST_ENDPOINT)


def connect_socket(
    opened: zmq.Socket[bytes], url: str, *, guard: Guard | None = None, insecure: bool = False
) -> None:
    """Connect; libzmq goes on trying for as long as the socket is open.

    Raises:
        ConfigError: The endpoint is malformed, or is tcp that nothing guards.
    """
    if guard is not None and url.startswith("tcp:"):
        guard.connect(opened, url)
        return
    parse_endpoint(url, insecure=insecure)
    opened.connect(url)
