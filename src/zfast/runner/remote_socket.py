"""The hub's endpoint for other hosts: a guarded ROUTER."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from errno import EADDRINUSE

import zmq

from zfast import _core
from zfast.addresses import SocketFile, parse_endpoint
from zfast.context import process_context
from zfast.errors import ProtocolError, TransportError
from zfast.runner.remote_protocol import HEARTBEAT_MS
from zfast.security.roles import Verb
from zfast.security.same_user import bind_to_this_user
from zfast.security.server_security import ServerSecurity

logger = logging.getLogger("zfast.runner")

#: Who may do none of these is not let in: workers claim jobs, others may look at the hub.
REMOTE_VERBS = frozenset({Verb.CLAIM, Verb.SUBSCRIBE})
#: At the end, what is not sent yet may take so long.
LINGER_MS = 1000


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """Where workers of other hosts may join a hub.

    Attributes:
        url: ``tcp://host:port``, the port ``*`` for any, or ``ipc:///path``.
        security: Who may come in; needed for tcp.
        insecure: Allow tcp of the loopback interface that nothing guards.
    """

    url: str
    security: ServerSecurity | None = None
    insecure: bool = False


class RemoteSocket:
    """Arguments as ``RemoteEndpoint``. Threads: made in one, used and closed in one other.

    Args:
        poller: Woken when there is something to receive.
        wake: Called on another thread when ``maintain`` has something to do.

    Attributes:
        endpoint: With the port that the system chose.

    Raises:
        ConfigError: The endpoint is malformed or unprotected, or keys are missing.
        TransportError: It cannot be bound; ``errno`` says why.
    """

    def __init__(
        self, remote: RemoteEndpoint, poller: zmq.Poller, wake: Callable[[], None]
    ) -> None:
        guarded = remote.security is not None
        endpoint = parse_endpoint(
            remote.url, insecure=remote.insecure, guarded=guarded, between_processes=True
        )
        self._socket = process_context().socket(zmq.ROUTER)
        self._socket.router_mandatory = True
        self._socket.set_hwm(0)  # bounded by the windows of the sessions
        self._socket.linger = 0
        self._door = None
        self._file: SocketFile | None = None
        try:
            if endpoint.scheme == "tcp" and remote.security is not None:
                self._door = remote.security.guard(
                    self._socket, verbs=REMOTE_VERBS, takes_tokens=True, on_change=wake
                )
                self.endpoint = self._door.bind(str(endpoint))
            else:
                self._socket.heartbeat_ivl = HEARTBEAT_MS
                self._socket.heartbeat_timeout = 3 * HEARTBEAT_MS
                self.endpoint, self._file = bind_to_this_user(self._socket, endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise _not_bound(str(endpoint), error.errno, str(error.strerror)) from error
        except TransportError as error:
            self.close()
            raise _not_bound(str(endpoint), error.errno, error.message) from error
        except BaseException:
            self.close()
            raise
        poller.register(self._socket, zmq.POLLIN)

    @property
    def is_guarded(self) -> bool:
        """Whether keys decide who comes in, and not the operating system."""
        return self._door is not None

    def maintain(self) -> None:
        """Serve the keys that are valid now, and answer who brought a token."""
        if self._door is not None:
            self._door.maintain()

    def authorise(self, user_id: str, verb: Verb) -> None:
        """See that the holder of a key may do what it asks.

        Raises:
            AccessDeniedError: It may not.
        """
        if self._door is not None:
            self._door.authorise(user_id, verb)

    def may(self, user_id: str, verb: Verb) -> bool:
        """Whether the holder of a key may do something now."""
        return self._door is None or self._door.may(user_id, verb)

    def send(
        self, route: bytes, kind: int, body: bytes, buffers: list[memoryview], number: int = 0
    ) -> bool:
        """Send a message; False if nobody is there any more."""
        try:
            return _core.send_message(
                self._socket, kind, body, buffers, request_id=number, routing_id=route
            )
        except TransportError:
            return False

    def receive(self) -> tuple[bytes, str, _core.Message] | None:
        """The next message with its connection's route and its sender's key.

        Raises:
            ProtocolError: What came is no message of ours; it was dropped.
        """
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return None
            if len(frames) < 2:
                raise ProtocolError("a message without frames")
            route, buffers = frames[0].bytes, [frame.buffer for frame in frames[1:]]
            if self._door is None:
                return route, "", _core.decode_message(buffers)
            user_id = str(frames[1].get("User-Id"))
            if not self._door.take_token(route, user_id, buffers[0]):
                return route, user_id, _core.decode_message(buffers)

    def close(self) -> None:
        """Close it; what is not sent yet may take a second to leave."""
        if self._door is not None:
            self._door.close()
        self._socket.close(linger=LINGER_MS)
        if self._file is not None:
            self._file.remove()


def _not_bound(endpoint: str, errno: int | None, reason: str) -> TransportError:
    return TransportError(
        f"workers cannot join at {endpoint}: {reason}",
        errno=errno,
        hint="does another flow run listen there? Give each its own port, or port *"
        if errno == EADDRINUSE
        else None,
    )
