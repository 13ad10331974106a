"""The doors of a relay's sockets: who may come in on tcp, and what each may say and hear there.

A relay serves one environment. Who somebody is, libzmq says with each message, the key that its
connection has proved; nothing that a message says of itself counts.

==================  =====================================  ================================
socket              comes in                               and may
==================  =====================================  ================================
control             who may subscribe, submit or claim     what these say, and bring its token
events              who may subscribe                      topics of the environment
publish             who may submit or claim: who runs      topics of the environment, each
                    something                              publisher under one key
==================  =====================================  ================================
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from zfast.errors import AccessDeniedError
from zfast.events.topics import RESERVED, make_topic
from zfast.security.door import Door
from zfast.security.roles import Verb
from zfast.security.server_security import ServerSecurity

LISTENING = frozenset({Verb.SUBSCRIBE})
#: Who runs something may say what it comes to.
PUBLISHING = frozenset({Verb.SUBMIT, Verb.CLAIM})
#: A subscriber's own topic has a name that nobody guesses.
_NONCE_NBYTES = 8


class RelayDoors:
    """Threads: the relay's.

    Args:
        security: Whose keys and policy decide; its environment is the relay's.
        on_change: Called on another thread when ``maintain`` has something to do.
    """

    def __init__(self, security: ServerSecurity, on_change: Callable[[], None]) -> None:
        self._security = security
        self._on_change = on_change
        self._doors: list[Door] = []
        self.root = make_topic([security.environment])

    def bind(self, opened: zmq.Socket[bytes], url: str, verbs: frozenset[Verb]) -> None:
        """Guard a socket and bind it.

        Raises:
            ConfigError, TransportError: It cannot be guarded or bound.
        """
        if opened.type == zmq.XPUB:
            # Subscriptions are granted one by one, or not.
            opened.setsockopt(zmq.XPUB_MANUAL, 1)
        # A subscriber's socket and a publisher's have no way to say a token.
        is_control = opened.type == zmq.ROUTER
        door = self._security.guard(
            opened,
            verbs=verbs,
            takes_tokens=is_control,
            beside_tokens=not is_control,
            on_change=self._on_change,
        )
        self._doors.append(door)
        door.bind(url)

    def take_token(self, routing_id: bytes, key: str, frame: bytes) -> bool:
        """Take a token that came over the control socket; whether the message is one."""
        return self._doors[0].take_token(routing_id, key, frame)

    def check_publisher(self, key: str) -> None:
        """Let somebody publish.

        Raises:
            AccessDeniedError: Its role may not.
        """
        access = self._security.access
        if any(access.find(key, verb) is not None for verb in PUBLISHING):
            return
        self._doors[0].authorise(key, Verb.SUBMIT)  # says and records who it is

    def check_prefix(self, key: str, prefix: bytes) -> None:
        """Let somebody read what is under a prefix.

        Raises:
            AccessDeniedError: It may not.
        """
        self._doors[0].authorise(key, Verb.SUBSCRIBE)
        if not prefix.startswith(self.root):
            asked = prefix.decode(errors="backslashreplace") or "every environment"
            raise AccessDeniedError(
                f"this relay is for {self._security.environment}, not for {asked}",
                hint=f"subscribe with environment={self._security.environment!r}",
            )

    def grants(self, key: str, topic: bytes) -> bool:
        """Whether a subscription of a connection is in force."""
        if self._security.access.find(key, Verb.SUBSCRIBE) is None:
            return False
        is_own = topic.startswith(RESERVED) and len(topic) > _NONCE_NBYTES
        return is_own or topic.startswith(self.root)

    def maintain(self) -> None:
        """Serve the keys that are valid now."""
        for door in self._doors:
            door.maintain()

    def close(self) -> None:
        """Guard no longer; before the sockets are closed."""
        for door in self._doors:
            door.close()


def key_of(frame: zmq.Frame) -> str:
    """The key of the connection that a frame came by; nothing where nobody proves one."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""
