"""How the events' sockets are opened, bound and connected: over ipc, or over tcp with keys."""

from __future__ import annotations

import contextlib
from pathlib import Path

import zmq

from zfast.addresses import parse_endpoint
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import ConfigError, TransportError, ZfastError
from zfast.ip_family import connect
from zfast.security.client_security import ClientSecurity, handshake_error
from zfast.security.same_user import bind_to_this_user, connect_only_to_this_user

#: Events that wait for one subscriber; those beyond are dropped, and it is told.
SUBSCRIBER_HWM = 10_000
#: Events that wait in the subscriber's own process.
RECEIVE_HWM = 50_000
#: No frame of ours is larger: a larger event is cut. One would end the connection for good.
MAX_FRAME_NBYTES = 1 << 20
#: How long a client waits before it connects again, at first and at most.
RECONNECT_MS = 20
RECONNECT_MAX_MS = 1000


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


def bind_socket(opened: zmq.Socket[bytes], url: str, *, insecure: bool = False) -> str:
    """Bind what no door guards; the endpoint, with the port that the system chose.

    Raises:
        ConfigError: The endpoint is malformed, or is tcp that nothing guards.
        TransportError: It cannot be bound; ``errno`` says why.
    """
    endpoint = parse_endpoint(url, insecure=insecure)
    try:
        return bind_to_this_user(opened, endpoint)[0]
    except zmq.ZMQError as error:
        raise TransportError(f"cannot bind {url}: {error}", errno=error.errno) from error


def is_readable(opened: zmq.Socket[bytes]) -> bool:
    """Whether a message is there; to ask takes less than a ``recv`` in vain, which raises."""
    return bool(int(opened.get(zmq.EVENTS)) & zmq.POLLIN)


def connect_socket(
    opened: zmq.Socket[bytes],
    url: str,
    *,
    security: ClientSecurity | None = None,
    insecure: bool = False,
) -> None:
    """Connect; libzmq goes on trying for as long as the socket is open.

    Where a token is to be brought, see ``Handshakes``: a relay takes it over its control endpoint.

    Raises:
        ConfigError: The endpoint is malformed, or is tcp that nothing guards, or there is no key.
        TransportError: The endpoint is another user's, or could be; or no socket can.
    """
    endpoint = parse_endpoint(
        url, insecure=insecure, guarded=security is not None, between_processes=True
    )
    connect_only_to_this_user(opened, endpoint)
    if security is not None and endpoint.scheme == "tcp":
        security.guard(opened, url, brings_token=False)
    connect(opened, url)


def client_security(
    url: str,
    security: ClientSecurity | None,
    *,
    insecure: bool = False,
    environment: str | None = None,
    key: str = "client",
    folder: Path | None = None,
) -> ClientSecurity | None:
    """What to connect to an endpoint with: what was given, else this host's keys for tcp.

    Args:
        environment: Whose keys; None is that of ``ZFAST_ENVIRONMENT``, else ``default``.
        key: Which key pair of the key folder.
        folder: The key folder; None is that of ``ZFAST_KEYS``, else the user's.

    Raises:
        ConfigError: It takes keys, and there are none.
    """
    if security is not None or insecure or not url.startswith("tcp:"):
        return security
    parse_endpoint(url, guarded=True)
    try:
        return ClientSecurity.load(environment, name=key, folder=folder)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{url} takes keys, and keys need {error.name}", hint="pip install 'zfast[security]'"
        ) from error
    except ConfigError as error:
        raise ConfigError(
            f"{url} takes keys, without them it is open to anyone: {error.message}",
            hint=error.hint,
        ) from error


class Handshakes:
    """Connects a DEALER to a relay's control endpoint, once the relay has taken our token if we
    have one, and sees from libzmq's own events what comes of it.

    Threads: the socket's.

    Attributes:
        news: Readable when there is news.

    Raises:
        ConfigError: The endpoint is malformed, or there is no key.
    """

    def __init__(self, watched: zmq.Socket[bytes], url: str, security: ClientSecurity) -> None:
        self._watched, self._url, self._security = watched, url, security
        endpoint = parse_endpoint(url, guarded=True, between_processes=True)
        connect_only_to_this_user(watched, endpoint)
        self._is_guarded = endpoint.scheme == "tcp"
        self._connection = ConnectionMonitor(watched)
        self.news = self._connection.socket
        if self._is_guarded:
            security.guard(watched, url)
        self._is_connecting = False
        self._connect()

    def error(self) -> ZfastError | None:
        """Why nothing comes over this socket, if that is so.

        Also connects it when it may be connected: to be called often until then.
        """
        try:
            self._connect()
            if self._connection.read() & zmq.EVENT_DISCONNECTED:
                self._begin_anew()
        except ZfastError as refusal:
            return refusal
        return handshake_error(self._url, self._security, self._connection)

    def _connect(self) -> None:
        if self._is_connecting or not self._security.may_connect(self._url):
            return
        self._is_connecting = True
        connect(self._watched, self._url)

    def _begin_anew(self) -> None:
        """Who has a token is nobody to a relay that began anew, until it was taken there too."""
        if self._security.has_token and self._is_guarded and self._is_connecting:
            self._is_connecting = False
            with contextlib.suppress(zmq.ZMQError):
                self._watched.disconnect(self._url)
            self._security.guard(self._watched, self._url)

    def close(self) -> None:
        """Watch no longer; before the socket is closed."""
        self._connection.close()
