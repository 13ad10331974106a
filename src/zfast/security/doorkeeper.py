"""The doorkeeper of one guarded socket: verdicts, who is connected, and who has to leave."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator

import zmq

from zfast.security import zap
from zfast.security.access import Access, Identity
from zfast.security.audit import record
from zfast.security.connections import Connection, Connections
from zfast.security.curve_keys import fingerprint
from zfast.security.heap import HeapKeeper
from zfast.security.limits import Limits
from zfast.security.roles import Verb

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
#: Refusals that may be another one's in a moment.
_FULL, _BESIDE = "too many guests", "no token yet"
_FOR_NOW = (_FULL, _BESIDE)
#: How often a token's end is looked for: a wall clock that is set, or a machine that slept, tells
#: nobody, and a subscriber says nothing that could be judged.
_LOOK_AT_TOKEN_S = 1.0
#: How often ends are looked for that the monitor does not tell: libzmq closes the connections of an
#: endpoint that is served no more when the socket's owner is next in a call.
_LOOK_AT_ENDS_S = 0.2
#: How often it is looked how much guests have sent: libzmq holds a message until it is whole.
_LOOK_AT_GUESTS_S = 0.05
_numbers = itertools.count(1)


class Doorkeeper:
    """What the gate asks about one socket. Threads: the gate's, unless it is said otherwise.

    Args:
        monitored: The guarded socket; only the constructor touches it.
        ports: Those that it listens on, at the time of the call.
        takes_guests: Peers with an unknown key may come in for a moment, if the policy has issuers.
        beside_guests: They may do so at another door, and so may come again.
        look_at_keys: Called at each review; the monotonic time when the server's keys change.

    Attributes:
        domain: The socket's ZAP domain.
        monitor: Receives libzmq's events of the socket.
        next_review_s: When to review its peers, on the monotonic clock.
    """

    def __init__(
        self,
        monitored: zmq.Socket[bytes],
        *,
        access: Access,
        verbs: frozenset[Verb],
        takes_guests: bool,
        beside_guests: bool,
        limits: Limits,
        ports: Callable[[], tuple[int, ...]],
        look_at_keys: Callable[[], float],
    ) -> None:
        self._access = access
        self._verbs = verbs
        self._takes_guests = takes_guests
        self._beside_guests = beside_guests
        self._limits = limits
        self._ports = ports
        self._look_at_keys = look_at_keys
        self.domain = f"zfast/{access.environment}/{next(_numbers)}"
        self.next_review_s = float("inf")
        self._connections = Connections(limits.handshake_ms / 1000)
        self._guests: dict[str, float] = {}
        self._failure = ""
        self._heap = HeapKeeper()
        self.monitor = self._open_monitor(monitored)

    def settle(self, fd: int, key: str) -> None:
        """A message of this key came over this descriptor. Threads: any."""
        self._connections.settle(fd, key)

    def all_end(self) -> None:
        """libzmq ends the connections there are, and tells of none."""
        self._connections.all_end()

    def peers(self) -> Iterator[tuple[str, str]]:
        """Address and key of each connection whose key is known. Threads: any."""
        for connection in self._connections:
            for key in list(connection.keys)[:1]:
                yield connection.address, key

    def judge(self, request: zap.Request) -> list[bytes]:
        """The reply to one handshake."""
        key = request.key
        is_test = request.address == zap.SELF_TEST_ADDRESS
        identity, reason = self._judge(request, may_be_guest=not is_test)
        if not is_test:
            self._tell(request, identity, reason)
        if reason:
            return zap.refuse(request.request_id, for_now=reason in _FOR_NOW)
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
        has_issuers = may_be_guest and bool(self._access.policy.issuers)
        if has_issuers and self._beside_guests:
            return None, _BESIDE
        if not has_issuers or not self._takes_guests:
            is_known = self._access.name_of(key)
            return None, "no role in this environment" if is_known else "unknown key"
        # One connection for a key, and one time: else a guest would stay for ever, and multiply.
        if key in self._guests or len(self._guests) >= self._limits.guests:
            return None, _FULL
        self._guests[key] = time.monotonic() + self._limits.guest_ms / 1000
        self.next_review_s = min(self.next_review_s, time.monotonic() + _LOOK_AT_GUESTS_S)
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
                if self._connections.accepted(value, self._ports()) is not None:
                    self._bound_half_open()
            elif event == zmq.EVENT_DISCONNECTED:
                self._ended(self._connections.ended(value))
            elif event in _FAILURES:
                # The end of that connection is the next thing that its monitor tells.
                self._failure = _PROTOCOL_ERRORS.get(value, _FAILURES[zmq.Event(event)])

    def _ended(self, connection: Connection | None) -> None:
        failure, self._failure = self._failure, ""
        keys = connection.keys if connection is not None else frozenset()
        was_guest = any(key in self._guests for key in keys)
        for key in keys:
            if not any(key in other.keys for other in self._connections):
                self._guests.pop(key, None)
        if was_guest or not keys:
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
        if self._connections.forget_ended():
            next_s = now + _LOOK_AT_ENDS_S
        for connection in self._connections:
            for key in connection.keys:
                until_s = self._may_stay_until(key)
                if until_s <= now:
                    self._cut(connection, key, self._why_no_longer(key))
                    break
                next_s = min(next_s, until_s)
        for key in [key for key, until_s in self._guests.items() if until_s <= now]:
            del self._guests[key]
        if self._guests:
            self._bound_guests()
            next_s = min(next_s, now + _LOOK_AT_GUESTS_S)
        self._heap.give_back()
        self.next_review_s = min(next_s, self._look_at_keys(), self._heap.due_s)

    def _bound_guests(self) -> None:
        """Cut who sends more than a token needs."""
        most_nbytes = self._limits.token_nbytes + self._limits.guest_nbytes
        for connection in self._connections:
            for key in connection.keys & self._guests.keys():
                if connection.received_nbytes() > most_nbytes:
                    self._cut(connection, key, "too much for a guest")
                    break

    def _may_stay_until(self, key: str) -> float:
        """On the monotonic clock; when to look again, if that is sooner."""
        # Before the identities: one that ends in between must not leave the other for ever.
        grant = self._access.grant_of(key)
        identities = self._access.identities(key)
        if any(identity.role.verbs & self._verbs for identity in identities):
            self._guests.pop(key, None)
            if grant is None:
                return float("inf")
            # Not later than it ends, also where another identity stays.
            return min(grant.until_monotonic_s, time.monotonic() + _LOOK_AT_TOKEN_S)
        if self._access.is_revoked(key):
            return 0.0
        return self._guests.get(key, 0.0)

    def _why_no_longer(self, key: str) -> str:
        if self._access.is_revoked(key):
            return "revoked key"
        return "no token in time" if key in self._guests else "no longer allowed"

    def _cut(self, connection: Connection, key: str, reason: str) -> None:
        connection.cut()
        record(
            "cut",
            reason=reason,
            address=connection.address,
            key=fingerprint(key),
            environment=self._access.environment,
        )

    def _open_monitor(self, monitored: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        endpoint = f"inproc://zfast-door-{os.getpid()}-{self.domain}"
        monitored.monitor(endpoint, _EVENTS)
        monitor: zmq.Socket[bytes] = monitored.context.socket(zmq.PAIR)
        # Without a limit: a full monitor would stop libzmq's I/O thread.
        monitor.rcvhwm = 0
        monitor.linger = 0
        monitor.connect(endpoint)
        return monitor
