"""Door: one guarded socket, as its owner uses it – bind, ask who may do what, close."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import zmq

from zfast.addresses import parse_endpoint
from zfast.errors import AccessDeniedError
from zfast.security.access import Access, Identity
from zfast.security.audit import record
from zfast.security.curve_keys import KeyPair, fingerprint
from zfast.security.doorkeeper import Doorkeeper
from zfast.security.gate import process_gate
from zfast.security.limits import Limits
from zfast.security.listeners import Listeners
from zfast.security.roles import Verb

if TYPE_CHECKING:
    from zfast.security.tokens import TokenDesk


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
        self._tokens = tokens
        self._limits = limits
        self._on_change = on_change
        self._needs_maintenance = False
        self._listeners = Listeners(guarded, limits)
        self._keeper = Doorkeeper(
            guarded,
            access=access,
            verbs=verbs,
            takes_guests=tokens is not None,
            limits=limits,
            ports=lambda: self._listeners.ports,
            look_at_keys=self._look_at_keys,
        )
        self._set_options()
        self._gate = process_gate()
        try:
            self._gate.add(self._keeper)
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
        endpoint = self._listeners.bind(parse_endpoint(url, guarded=True), self._keys()[0])
        self._gate.command(lambda: None)  # to look again when the keys change
        return endpoint

    def maintain(self) -> None:
        """Serve the keys that are valid now; costs next to nothing when nothing has changed."""
        if not self._needs_maintenance:
            return
        self._needs_maintenance = False
        pairs, _ = self._keys()
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
        self._gate.remove(self._keeper)

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
            self._keeper.settle(fd, user_id)
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
        return [(address, self.identity(key)) for address, key in self._keeper.peers()]

    def _look_at_keys(self) -> float:
        """On the gate's thread: note whether ``maintain`` has something to do."""
        pairs, change_s = self._keys()
        if self._listeners.keys and not self._listeners.serves(pairs):
            self._needs_maintenance = True
            if self._on_change is not None:
                self._on_change()
        return change_s

    # ---- making it ---------------------------------------------------------------------

    def _set_options(self) -> None:
        guarded, limits = self._socket, self._limits
        guarded.zap_domain = self._keeper.domain.encode()
        guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        guarded.maxmsgsize = limits.frame_nbytes
        guarded.handshake_ivl = limits.handshake_ms
        guarded.backlog = limits.backlog
        guarded.heartbeat_ivl = limits.heartbeat_ms
        guarded.heartbeat_timeout = 3 * limits.heartbeat_ms
        if guarded.type == zmq.ROUTER:
            # A second peer under a routing id in use is ignored, not given the first one's mail.
            guarded.router_handover = False


def _printable(user_id: str) -> str:
    try:
        return fingerprint(user_id)
    except Exception:
        return "none"
