"""Port: the one socket of a link, and what is known of its connection."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from zfast import _core
from zfast.addresses import Endpoint, SocketFile, parse_endpoint
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import AccessDeniedError, ConfigError, TransportError
from zfast.ip_family import connect
from zfast.security.client_security import ClientSecurity, handshake_error
from zfast.security.door import Door
from zfast.security.roles import Verb
from zfast.security.routing_ids import RoutingIds
from zfast.security.same_user import bind_to_this_user, connect_only_to_this_user
from zfast.security.server_security import ServerSecurity
from zfast.transport.link_options import LinkOptions
from zfast.transport.peer import Peer
from zfast.transport.send_buffer import widen_send_buffer

#: How long one waiting receive may take: in that time nobody looks at the connection.
PATIENCE_S = 0.005
#: How long a token may take to be taken: whoever is to take it must be in a call.
TOKEN_S = 10.0
#: So soon it is seen whether a token has been checked.
CHECKING_S = 0.01
#: What a link's peer must be allowed to do, with each message: its values are unpickled.
LINK_VERB = Verb.PUT


class Port:
    """A ROUTER that is bound, or a DEALER that connects. Threads: one at a time.

    Args:
        url: See ``zfast.addresses.parse_endpoint``.
        bound: Bind a ROUTER, which takes any number of peers; else connect a DEALER.

    Attributes:
        endpoint: With the port that the system chose.
        admits: Decides on each message that is received, see ``_core.recv``; None where whoever is
            connected may say what he likes.
        shares_memory: Over inproc libzmq hands the receiver the sender's own memory: nothing is
            ever under way.

    Raises:
        ConfigError: The endpoint is malformed or unprotected.
        TransportError: It cannot be opened; ``errno`` says why.
    """

    def __init__(self, url: str, *, bound: bool, options: LinkOptions) -> None:
        guarded = options.security is not None
        endpoint = parse_endpoint(url, insecure=options.insecure, guarded=guarded)
        if guarded and isinstance(options.security, ServerSecurity) != bound:
            raise ConfigError(
                f"{endpoint}: binding takes a ServerSecurity, connecting a ClientSecurity"
            )
        self.endpoint = str(endpoint)
        self.bound = bound
        self.shares_memory = endpoint.scheme == "inproc"
        self.socket = process_context().socket(zmq.ROUTER if bound else zmq.DEALER)
        self.socket.set_hwm(options.hwm)
        self.socket.linger = 0
        self.socket.rcvtimeo = int(PATIENCE_S * 1000)
        self._file: SocketFile | None = None
        self._door: Door | None = None
        self.admits: Callable[[bytes | None, str, int, bytes | None], bool] | None = None
        self._trust: ClientSecurity | None = None
        # Not ZMQ_IMMEDIATE: with it, what a peer said before it closed is lost (libzmq 4.3.5).
        self._connection = None
        if not self.shares_memory:
            _core.keep_heap_warm(options.window_nbytes)
            if not bound:
                self._connection = ConnectionMonitor(
                    self.socket, only_first=True, on_connected=widen_send_buffer
                )
        try:
            if bound:
                self.socket.router_mandatory = True
                self._bind(endpoint, options)
            else:
                self._guard_connecting(endpoint, options)
                connect(self.socket, self.endpoint)
        except zmq.ZMQError as error:
            self.close(0)
            raise TransportError(
                f"cannot {'bind' if bound else 'connect to'} {endpoint}: {error.strerror}",
                errno=error.errno,
            ) from error
        except BaseException:
            self.close(0)
            raise

    def _bind(self, endpoint: Endpoint, options: LinkOptions) -> None:
        if endpoint.scheme == "tcp" and isinstance(options.security, ServerSecurity):
            self._door = options.security.guard(self.socket, verbs=[LINK_VERB], takes_tokens=True)
            self.admits = _admission(self._door)
            self.endpoint = self._door.bind(self.endpoint)
            return
        self.endpoint, self._file = bind_to_this_user(self.socket, endpoint)

    def _guard_connecting(self, endpoint: Endpoint, options: LinkOptions) -> None:
        connect_only_to_this_user(self.socket, endpoint)
        if endpoint.scheme == "tcp" and isinstance(options.security, ClientSecurity):
            self._trust = options.security
            self._trust.guard(self.socket, self.endpoint)
            self._trust.wait_until_welcome(self.endpoint, TOKEN_S)

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return bool(self.socket.closed)

    @property
    def connected(self) -> bool:
        """Whether a message would leave: a ROUTER is told for each peer."""
        return self._connection is None or self._connection.connected

    def lost(self) -> bool:
        """Take the news; whether the connection that once stood has ended.

        Raises:
            HandshakeError: The other side refuses our key, or is not who we trust.
        """
        if self._door is not None:
            self._door.maintain()
        if self._connection is None:
            return False
        self._connection.read()
        if self._trust is not None:
            error = handshake_error(self.endpoint, self._trust, self._connection)
            if error is not None:
                raise error
        return self._connection.lost

    def poll(self, events: int, timeout: float | None) -> int:
        """Wait for the socket's events, or for news of the connection."""
        also = self._connection.socket if self._connection is not None else None
        if self._door is not None:
            self._door.maintain()
            if self._door.owes_answers:
                timeout = CHECKING_S if timeout is None else min(timeout, CHECKING_S)
        return _core.poll(self.socket, events, timeout, also)

    def recv(
        self, peers: dict[bytes | None, Peer], *, wait: bool = False
    ) -> _core.Message | _core.Batch | _core.Landing | None:
        """What is there or, to ``wait``, comes in ``PATIENCE_S``. See ``_core.recv``."""
        return _core.recv(
            self.socket, routed=self.bound, wait=wait, peers=peers, admits=self.admits
        )

    def close(self, linger_ms: int) -> None:
        """Close the socket; what is not sent may take ``linger_ms`` to leave."""
        if self._connection is not None:
            self._connection.close()
        if self._door is not None:
            self._door.close()
        self.socket.close(linger=linger_ms)
        if self._file is not None:
            self._file.remove()


def _admission(door: Door) -> Callable[[bytes | None, str, int, bytes | None], bool]:
    """Whether a message may come in: by its connection's key, whatever stands in it."""
    routing_ids = RoutingIds()

    def admits(routing_id: bytes | None, user_id: str, source_fd: int, token: bytes | None) -> bool:
        if token is not None and door.take_token(routing_id or b"", user_id, token):
            return False
        try:
            routing_ids.check(routing_id or b"", user_id)
            door.authorise(user_id, LINK_VERB, fd=source_fd)
        except AccessDeniedError:
            return False  # recorded; what a stranger sends is no error of who receives
        return True

    return admits
