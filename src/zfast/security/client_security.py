"""ClientSecurity: the key that a process shows to servers, and the servers that it trusts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import zmq

from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import ConfigError, HandshakeError
from zfast.ip_family import connect
from zfast.security.curve_keys import KeyPair, PublicKey, SecretSource, resolve_secret
from zfast.security.limits import Limits
from zfast.security.token_courier import TokenCourier

if TYPE_CHECKING:
    from pathlib import Path

    from zfast.security.settings import SecuritySettings

#: How long an endpoint is asked which of several trusted keys it has.
CHOICE_S = 2.0
#: How often a client tries again, at first and at most.
RECONNECT_MS = 100
RECONNECT_MAX_MS = 10_000
#: Handshakes that fail in a row before a server counts as another one than we trust: in a rotation
#: every second one may.
MAX_FAILED_HANDSHAKES = 16


class ClientSecurity:
    """Guards the sockets that a process connects on tcp.

    Args:
        secret: This process's secret key, or what holds or fetches it; fetched when the first
            socket connects.
        servers: Public keys that a server may have: one, or in a rotation the old and the new one.
        token: Gives the bearer token whenever one is needed, on any thread. It is brought to a
            server before anything is said there, and a new one before it ends.

    Threads: any.
    """

    def __init__(
        self,
        secret: SecretSource | KeyPair,
        servers: Iterable[PublicKey],
        *,
        token: Callable[[], str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._secret = secret
        self._pair: KeyPair | None = secret if isinstance(secret, KeyPair) else None
        self.servers = tuple(servers)
        self.limits = limits or Limits()
        self._token = token
        self._lock = threading.Lock()
        self._couriers: dict[str, TokenCourier] = {}
        if not self.servers:
            raise ConfigError("a client needs the public key of its server")

    @classmethod
    def load(
        cls,
        environment: str | None = None,
        *,
        name: str = "client",
        folder: Path | None = None,
        token_file: Path | None = None,
        limits: Limits | None = None,
    ) -> ClientSecurity:
        """With keys from where the ``ZFAST_*`` variables say, else the key folder.

        Args:
            environment: None is that of ``ZFAST_ENVIRONMENT``, else ``default``.
            name: Which key pair of the folder.
            folder: The key folder; None is that of ``ZFAST_KEYS``, else the user's.
            token_file: Holds the bearer token, and whoever renews it writes there; None is that of
                ``ZFAST_TOKEN_FILE``, else ``ZFAST_TOKEN`` is the token.

        Raises:
            ConfigError: Keys are missing, malformed or open to others.
        """
        from zfast.security.settings import load_settings
        from zfast.security.sources import load_client_pair, load_trusted_servers

        settings = load_settings()
        if environment is not None:
            settings = settings.model_copy(update={"environment": environment})
        if folder is not None:
            settings = settings.model_copy(update={"keys": folder})
        if token_file is not None:
            settings = settings.model_copy(update={"token_file": token_file})
        return cls(
            load_client_pair(settings, name),
            load_trusted_servers(settings),
            token=_token_source(settings),
            limits=limits,
        )

    @property
    def pair(self) -> KeyPair:
        """This process's key pair.

        Raises:
            ConfigError: What should hold it holds no key.
        """
        if self._pair is None:
            assert not isinstance(self._secret, KeyPair)
            self._pair = KeyPair.from_secret(self._secret, "client")
        return self._pair

    @property
    def has_token(self) -> bool:
        """Whether there is one to bring."""
        return self._token is not None

    def token(self) -> str | None:
        """The bearer token to present, read anew; None when there is none.

        Raises:
            ConfigError: Its file cannot be read, or is open to others.
        """
        return self._token() if self._token is not None else None

    def guard(
        self, guarded: zmq.Socket[bytes], endpoint: str, *, brings_token: bool = True
    ) -> None:
        """Prepare a socket of the calling thread to connect to ``endpoint``, once ``may_connect``.

        When several keys are trusted, the endpoint is asked which one it has; a server that does
        not answer in 2 s is taken to have the first.

        Args:
            brings_token: False where another socket's endpoint is the one to bring a token to.

        Raises:
            ConfigError: There is no key.
        """
        server = self.servers[0]
        if len(self.servers) > 1:
            server = find_server_key(endpoint, self) or server
        self._set_options(guarded, server)
        if brings_token and self._token is not None:
            self._send_courier(guarded, endpoint, server)

    def may_connect(self, endpoint: str, timeout_s: float = 0.0) -> bool:
        """Whether a socket that was guarded may connect to its endpoint by now.

        That is so at once where there is no token to bring. Else it was taken since ``guard`` was
        called; waits so long for it.

        Raises:
            TokenError, HandshakeError, ConfigError: It never will be, and why.
        """
        courier = self._couriers.get(endpoint)
        return courier is None or courier.taken(timeout_s)

    def wait_until_welcome(self, endpoint: str, timeout_s: float) -> None:
        """Wait until ``may_connect``.

        Raises:
            HandshakeError: Nobody took our token in time.
            TokenError, ConfigError: As ``may_connect``.
        """
        if not self.may_connect(endpoint, timeout_s):
            raise HandshakeError(
                f"nobody took our token at {endpoint} in {timeout_s:g} s",
                detail=self._couriers[endpoint].reason or None,
                hint="is the other side open, and in a call?",
            )

    def _send_courier(self, user: zmq.Socket[bytes], endpoint: str, server: PublicKey) -> None:
        with self._lock:
            courier = self._couriers.get(endpoint)
            if courier is not None and courier.serve(user):
                return
            self._couriers[endpoint] = courier = TokenCourier(
                endpoint,
                self.token,
                lambda opened: self._set_options(opened, server),
                lambda connection: handshake_error(endpoint, self, connection),
            )
            courier.serve(user)

    def _set_options(self, guarded: zmq.Socket[bytes], server: PublicKey) -> None:
        pair, limits = self.pair, self.limits
        guarded.curve_serverkey = server.z85.encode()
        guarded.curve_publickey = pair.public.z85.encode()
        guarded.curve_secretkey = pair.secret.reveal()
        guarded.maxmsgsize = limits.frame_nbytes
        guarded.handshake_ivl = limits.handshake_ms
        guarded.heartbeat_ivl = limits.heartbeat_ms
        guarded.heartbeat_timeout = 3 * limits.heartbeat_ms
        guarded.reconnect_ivl = RECONNECT_MS
        guarded.reconnect_ivl_max = RECONNECT_MAX_MS


def find_server_key(
    endpoint: str, security: ClientSecurity, *, timeout_s: float = CHOICE_S
) -> PublicKey | None:
    """Which of the trusted keys the server at an endpoint has; None when none answers in time.

    Raises:
        HandshakeError: It has one of them, and refuses this process's key.
    """
    context = process_context()
    poller = zmq.Poller()
    askers: dict[zmq.Socket[bytes], tuple[zmq.Socket[bytes], ConnectionMonitor, PublicKey]] = {}
    try:
        for server in security.servers:
            asker = context.socket(zmq.DEALER)
            asker.linger = 0
            security._set_options(asker, server)
            connection = ConnectionMonitor(asker)
            askers[connection.socket] = (asker, connection, server)
            poller.register(connection.socket, zmq.POLLIN)
            connect(asker, endpoint)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            for readable, _ in poller.poll(int(left_s * 1000) + 1):
                _, connection, server = askers[readable]
                news = connection.read()
                if connection.refused:
                    raise _refused(endpoint, security)
                if news & zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return server
        return None
    finally:
        for asker, connection, _ in askers.values():
            connection.close()
            asker.close(linger=0)


def handshake_error(
    endpoint: str, security: ClientSecurity, connection: ConnectionMonitor
) -> HandshakeError | None:
    """What the news of a connection's handshakes comes to; None if there is nothing to it."""
    if connection.refused:
        return _refused(endpoint, security)
    if connection.failures >= MAX_FAILED_HANDSHAKES:
        return _not_trusted(endpoint, security)
    return None


def _refused(endpoint: str, security: ClientSecurity) -> HandshakeError:
    return HandshakeError(
        f"{endpoint} refused our key {security.pair.public.fingerprint}",
        hint="on the server: 'zfast keys authorize KEY.pub --role ROLE', and see its log at DEBUG "
        "for the reason",
    )


def _not_trusted(endpoint: str, security: ClientSecurity) -> HandshakeError:
    """The server cannot prove to have a trusted key, or speaks no CURVE."""
    trusted = ", ".join(key.fingerprint for key in security.servers)
    return HandshakeError(
        f"{endpoint} is not the server we trust: no handshake ends with key {trusted}",
        hint="compare with 'zfast keys show server -e ENVIRONMENT' on the server; after a "
        "rotation, trust the new key too",
    )


def _token_source(settings: SecuritySettings) -> Callable[[], str] | None:
    from zfast.security.held_secrets import taken_secret
    from zfast.security.private_files import read_private_file

    path = settings.token_file
    if path is not None:
        return lambda: read_private_file(path).decode("ascii", "replace").strip()
    held = taken_secret("ZFAST_TOKEN")
    return (lambda: resolve_secret(held)) if held is not None else None
