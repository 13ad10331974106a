"""Door: one guarded socket, as its owner uses it – bind, ask who may do what, close."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec
import zmq

from zfast import _core
from zfast.addresses import parse_endpoint
from zfast.errors import AccessDeniedError, ProtocolError, TransportError
from zfast.security.access import Access, Identity
from zfast.security.audit import record
from zfast.security.curve_keys import KeyPair, fingerprint
from zfast.security.doorkeeper import Doorkeeper
from zfast.security.gate import process_gate
from zfast.security.limits import Limits
from zfast.security.listeners import Listeners
from zfast.security.roles import Verb
from zfast.security.token_messages import ANSWER_KIND, Answer, is_token, read_token

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
        tokens: Gives the desk that takes the tokens of peers, those with an unknown key among
            them. None takes none.
        beside_tokens: They are taken at another door, so that who is unknown may come again.
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
        tokens: Callable[[], TokenDesk] | None,
        beside_tokens: bool,
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
        self._checking: set[Future[Identity]] = set()
        self._answers: deque[tuple[bytes, Answer]] = deque()
        self._listeners = Listeners(guarded, limits)
        self._keeper = Doorkeeper(
            guarded,
            access=access,
            verbs=verbs,
            takes_guests=tokens is not None,
            beside_guests=beside_tokens,
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
        """Serve the keys that are valid now, and tell peers what became of their tokens.

        Costs next to nothing when nothing has changed.
        """
        while self._answers:
            self._answer(*self._answers.popleft())
        if not self._needs_maintenance:
            return
        self._needs_maintenance = False
        pairs, _ = self._keys()
        if self._listeners.keys and not self._listeners.serves(pairs):
            if self._listeners.serve(pairs):
                self._gate.command(self._keeper.all_end)
            record(
                "server keys changed",
                level=20,
                environment=self._access.environment,
                keys=[fingerprint(pair.public.z85) for pair in pairs],
            )
        self._gate.command(lambda: None)

    def take_token(self, routing_id: bytes, user_id: str, frame: bytes | memoryview) -> bool:
        """Take a peer's token; whether its message is one, and so nothing for the owner.

        Each owner of a ROUTER asks this of each message before it authorises it. The answer goes
        out with ``maintain``, in milliseconds.

        Args:
            frame: The message's first frame, after the routing id.
        """
        if not is_token(frame):
            return False
        if self._tokens is None or not self._access.policy.issuers:
            identity = self.identity(user_id)
            role = identity.role.value if identity is not None else ""
            self._answers.append((routing_id, Answer(role=role)))
            return True
        try:
            checked = self.present(user_id, read_token(frame))
        except ProtocolError as error:
            self._answers.append((routing_id, Answer(refusal=error.message)))
            return True
        self._checking.add(checked)
        checked.add_done_callback(lambda done: self._checked(routing_id, user_id, done))
        return True

    @property
    def owes_answers(self) -> bool:
        """Whether ``maintain`` will soon have to answer the bearer of a token."""
        return bool(self._answers or self._checking)

    def close(self) -> None:
        """Guard no longer: before the socket is closed, so that nobody comes in unwatched."""
        self._listeners.close()
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

    def may(self, user_id: str, verb: Verb) -> bool:
        """Whether the holder of a key may do something now, with no message of it at hand."""
        return self._access.find(user_id, verb) is not None

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
        future = self._tokens().present(self._access, user_id, token, self._limits.token_nbytes)
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

    def _checked(self, routing_id: bytes, user_id: str, done: Future[Identity]) -> None:
        """On another thread: a token was checked."""
        error = done.exception()
        if error is None:
            grant = self._access.grant_of(user_id)
            left_s = grant.until_monotonic_s - time.monotonic() if grant is not None else 0.0
            answer = Answer(role=done.result().role.value, left_s=max(0.0, left_s))
        else:
            message = error.message if isinstance(error, AccessDeniedError) else "error"
            answer = Answer(refusal=message, for_now=getattr(error, "for_now", False))
        self._answers.append((routing_id, answer))
        self._checking.discard(done)
        if self._on_change is not None:
            self._on_change()

    def _answer(self, routing_id: bytes, answer: Answer) -> None:
        try:
            _core.send_message(
                self._socket, ANSWER_KIND, msgspec.json.encode(answer), routing_id=routing_id
            )
        except TransportError:
            pass  # it has gone, or does not read: it will ask again

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
