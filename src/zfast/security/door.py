"""Door: one guarded socket – who gets in, what each may ask for, and the cut of who may not stay."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import zmq

from zfast.addresses import parse_endpoint
from zfast.errors import AccessDeniedError
from zfast.security import zap
from zfast.security.access import Access, Identity
from zfast.security.audit import record
from zfast.security.connections import Connection, Connections
from zfast.security.curve_keys import KeyPair, fingerprint
from zfast.security.gate import process_gate
from zfast.security.heap import HeapKeeper
from zfast.security.limits import Limits
from zfast.security.listeners import Listeners
from zfast.security.roles import Verb

if TYPE_CHECKING:
    from zfast.security.tokens import TokenDesk

_EVENT = struct.Struct("=Hi")
_FAILURES = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "",  # its ZAP request was recorded
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake not finished",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "malformed handshake",
}
_PROTOCOL_ERRORS = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "not CURVE",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "wrong server key",
}
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
#: The one refusal that may be another one's in a moment.
_FULL = "too many guests"
_numbers = itertools.count(1)


class Door:
    """Guards one socket that is not bound yet. Made by ``ServerSecurity.guard``.

    Each message's ``User-Id`` is its peer's public key in Z85, put there by libzmq after the
    handshake: ``authorise`` it, and believe no name in a body.

    Args:
        guarded: The socket; belongs to the calling thread, and is closed by its owner after the
            door.
        access: Who may do what.
        keys: The key pairs to serve now, the one for new clients first, and when that changes on
            the monotonic clock. Called on any thread.
        verbs: A peer that may do none of these is not let in.
        tokens: Takes the tokens of peers whose key is unknown. None lets no such peer in.
        limits: What strangers may cost.
        on_change: Called on another thread when ``maintain`` has something to do.

    Raises:
        ConfigError, TransportError: The ZAP handler does not work; nothing was bound.

    Threads: ``authorise``, ``identity``, ``present`` and ``peers`` any; the rest the socket's.
    """

    def __init__(
        self,
        guarded: zmq.Socket[bytes],
        *,
        access: Access,
        keys: Callable[[], tuple[list[KeyPair], float]],
        verbs: frozenset[Verb],
        tokens: TokenDesk | None,
        limits: Limits,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._socket = guarded
        self._access = access
        self._keys = keys
        self._verbs = verbs
        self._tokens = tokens
        self._limits = limits
        self._on_change = on_change
        self._needs_maintenance = False
        self._next_key_change_s = float("inf")
        self.domain = f"zfast/{access.environment}/{next(_numbers)}"
        self.next_review_s = float("inf")
        self._connections = Connections(limits.handshake_ms / 1000)
        self._guests: dict[str, float] = {}
        self._failure = ""
        self._heap = HeapKeeper()
        self._gate = process_gate()
        self._set_options()
        self._listeners = Listeners(guarded, limits)
        self.monitor = self._open_monitor()
        try:
            self._gate.add(self)
        except BaseException:
            self.close()
            raise

    # ---- the socket's thread -----------------------------------------------------------

    def bind(self, url: str) -> str:
        """Listen on ``tcp://host:port``; the endpoint, with the port that the system chose.

        Raises:
            ConfigError: The endpoint is malformed.
            TransportError: It cannot be bound; ``errno`` says why.
        """
        pairs, self._next_key_change_s = self._keys()
        endpoint = self._listeners.bind(parse_endpoint(url, guarded=True), pairs)
        self._gate.command(lambda: None)  # to look again when the keys change
        return endpoint

    def maintain(self) -> None:
        """Serve the keys that are valid now; costs next to nothing when nothing has changed."""
        if not self._needs_maintenance:
            return
        self._needs_maintenance = False
        pairs, self._next_key_change_s = self._keys()
        if self._listeners.keys and not self._listeners.serves(pairs):
            self._listeners.serve(pairs)
            record(
                "server keys changed",
                level=20,
                environment=self._access.environment,
                keys=[fingerprint(pair.public.z85) for pair in pairs],
            )
        self._gate.command(lambda: None)

    def close(self) -> None:
        """Guard no longer: before the socket is closed, so that nobody comes in unwatched."""
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._gate.remove(self)

    # ---- any thread --------------------------------------------------------------------

    def authorise(self, user_id: str, verb: Verb, *, fd: int | None = None) -> Identity:
        """The identity by which a message's sender may do what it asks.

        Args:
            user_id: The message's ``User-Id``.
            verb: What it asks for.
            fd: The message's ``SRCFD``, where the caller has it: makes later cuts exact.

        Raises:
            AccessDeniedError: It may not. The message goes to the log; tell the peer no more than
                that it was refused.
        """
        identity = self._access.find(user_id, verb)
        if fd is not None:
            self._connections.settle(fd, user_id)
        if identity is None:
            print_ = _printable(user_id)
            who = self.identity(user_id)
            role = who.role.value if who is not None else ""
            record(
                "denied",
                reason=f"may not {verb.value}",
                key=print_,
                subject=who.subject if who else "",
                role=role,
                environment=self._access.environment,
            )
            raise AccessDeniedError(
                f"{who.subject if who else f'key {print_}'}, {role or 'without a role'}, may not "
                f"{verb.value} in {self._access.environment}",
                hint="'zfast token check' shows which rule decides",
            )
        return identity

    def identity(self, user_id: str) -> Identity | None:
        """Who the holder of a key is now, or None; a token counts before the key."""
        found = self._access.identities(user_id)
        return found[-1] if found else None

    def present(self, user_id: str, token: str) -> Future[Identity]:
        """Check a token that a peer brought, on another thread, and let it do what it allows.

        Renewal is the same: the new token takes the last one's place.

        Returns:
            Ends with the identity, or with ``TokenError``. Its callbacks run on another thread.
        """
        if self._tokens is None:
            refused: Future[Identity] = Future()
            refused.set_exception(AccessDeniedError("no tokens are taken at this door"))
            return refused
        future = self._tokens.present(self._access, user_id, token, self._limits.token_nbytes)
        future.add_done_callback(lambda _: self._gate.command(lambda: None))
        return future

    def peers(self) -> list[tuple[str, Identity | None]]:
        """Address and identity of each connection whose key is known."""
        return [
            (connection.address, self.identity(next(iter(connection.keys))))
            for connection in self._connections
            if connection.keys
        ]

    # ---- the gate's thread -------------------------------------------------------------

    def judge(self, request: zap.Request) -> list[bytes]:
        """The reply to one handshake."""
        key = request.key
        is_test = request.address == zap.SELF_TEST_ADDRESS
        identity, reason = self._judge(request, may_be_guest=not is_test)
        if not is_test:
            self._tell(request, identity, reason)
        if reason:
            return zap.refuse(request.request_id, for_now=reason == _FULL)
        if not is_test:
            self._connections.assign(key, request.address)
        return zap.admit(request)

    def _tell(self, request: zap.Request, identity: Identity | None, reason: str) -> None:
        key = request.key
        record(
            "refused" if reason else "admitted",
            reason=reason,
            mechanism=request.mechanism,
            address=request.address,
            key=fingerprint(key) if key else "",
            subject=identity.subject if identity else self._access.name_of(key),
            role=identity.role.value if identity else "" if reason else "guest",
            environment=self._access.environment,
        )

    def _judge(self, request: zap.Request, *, may_be_guest: bool) -> tuple[Identity | None, str]:
        """Who it is, and why it is refused."""
        if request.mechanism != "CURVE":
            return None, "not CURVE"
        key = request.key
        if self._access.is_revoked(key):
            return None, "revoked key"
        identities = self._access.identities(key)
        for identity in identities:
            if identity.role.verbs & self._verbs:
                return identity, ""
        if identities:
            return identities[0], "role has no business here"
        if self._access.name_of(key) and self._tokens is None:
            return None, "no role in this environment"
        if self._tokens is None or not may_be_guest:
            return None, "unknown key"
        if len(self._guests) >= self._limits.guests and key not in self._guests:
            return None, _FULL
        self._guests[key] = time.monotonic() + self._limits.guest_ms / 1000
        self.next_review_s = min(self.next_review_s, self._guests[key])
        return None, ""

    def read_monitor(self) -> None:
        """Take the news of the socket's connections."""
        while True:
            try:
                event, value = _EVENT.unpack(self.monitor.recv(zmq.DONTWAIT))
                self.monitor.recv(zmq.DONTWAIT)  # our endpoint, always the same
            except zmq.Again:
                return
            if event == zmq.EVENT_ACCEPTED:
                if self._connections.accepted(value, self._listeners.ports) is not None:
                    self._bound_half_open()
            elif event == zmq.EVENT_DISCONNECTED:
                self._ended(self._connections.ended(value))
            elif event in _FAILURES:
                # The end of that connection is the next thing that its monitor tells.
                self._failure = _PROTOCOL_ERRORS.get(value, _FAILURES[zmq.Event(event)])

    def _ended(self, connection: Connection | None) -> None:
        failure, self._failure = self._failure, ""
        keys = connection.keys if connection is not None else frozenset()
        for key in keys:
            if not any(key in other.keys for other in self._connections):
                self._guests.pop(key, None)
        if not keys:
            self._heap.strangers_left()
            self.next_review_s = min(self.next_review_s, self._heap.due_s)
        if failure and not keys:
            record(
                "refused",
                reason=(connection and connection.failure) or failure,
                address=connection.address if connection is not None else "",
                environment=self._access.environment,
            )

    def _bound_half_open(self) -> None:
        """Make room: the oldest stranger goes, since a handshake takes milliseconds."""
        if len(self._connections) <= self._limits.half_open:
            return
        half_open = self._connections.half_open()
        for connection in half_open[: max(0, len(half_open) - self._limits.half_open)]:
            connection.failure = "too many half-open connections"
            connection.cut()

    def review(self) -> None:
        """Cut whoever may no longer be there, and see when to look again."""
        now = time.monotonic()
        next_s = float("inf")
        for connection in self._connections:
            for key in connection.keys:
                until_s = self._may_stay_until(key)
                if until_s <= now:
                    self._cut(connection, key)
                    break
                next_s = min(next_s, until_s)
        for key in [key for key, until_s in self._guests.items() if until_s <= now]:
            del self._guests[key]
        if self._listeners.keys and not self._listeners.serves(self._keys()[0]):
            self._next_key_change_s = float("inf")
            self._needs_maintenance = True
            if self._on_change is not None:
                self._on_change()
        self._heap.give_back()
        self.next_review_s = min(next_s, self._next_key_change_s, self._heap.due_s)

    def _may_stay_until(self, key: str) -> float:
        identities = self._access.identities(key)
        if any(identity.role.verbs & self._verbs for identity in identities):
            self._guests.pop(key, None)
            grant = self._access.grant_of(key)
            # One of two identities may end before the other: look then.
            return grant.until_monotonic_s if grant is not None else float("inf")
        if self._access.is_revoked(key):
            return 0.0
        return self._guests.get(key, 0.0)

    def _cut(self, connection: Connection, key: str) -> None:
        if self._access.is_revoked(key):
            reason = "revoked key"
        elif key in self._guests:
            reason = "no token in time"
        else:
            reason = "no longer allowed"
        connection.cut()
        record(
            "cut",
            reason=reason,
            address=connection.address,
            key=fingerprint(key),
            environment=self._access.environment,
        )

    # ---- making it ---------------------------------------------------------------------

    def _set_options(self) -> None:
        guarded, limits = self._socket, self._limits
        guarded.zap_domain = self.domain.encode()
        guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        guarded.maxmsgsize = limits.frame_nbytes
        guarded.handshake_ivl = limits.handshake_ms
        guarded.backlog = limits.backlog
        guarded.heartbeat_ivl = limits.heartbeat_ms
        guarded.heartbeat_timeout = 3 * limits.heartbeat_ms
        if guarded.type == zmq.ROUTER:
            # A second peer under a routing id in use is ignored, not given the first one's mail.
            guarded.router_handover = False

    def _open_monitor(self) -> zmq.Socket[bytes]:
        endpoint = f"inproc://zfast-door-{os.getpid()}-{self.domain}"
        self._socket.monitor(endpoint, _EVENTS)
        monitor = self._gate.context.socket(zmq.PAIR)
        # Without a limit: a full monitor would stop libzmq's I/O thread.
        monitor.rcvhwm = 0
        monitor.linger = 0
        monitor.connect(endpoint)
        return monitor


def _printable(user_id: str) -> str:
    try:
        return fingerprint(user_id)
    except Exception:
        return "none"
