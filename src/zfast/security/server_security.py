"""ServerSecurity: the keys that sockets are served with, and who may come in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import zmq

from zfast.errors import ConfigError
from zfast.security.access import Access
from zfast.security.audit import record
from zfast.security.curve_keys import KeyPair, PublicKey, SecretSource, fingerprint
from zfast.security.door import Door
from zfast.security.gate import process_gate
from zfast.security.limits import Limits
from zfast.security.policy import Policy, Rule
from zfast.security.reload import Reloader
from zfast.security.roles import Role, Verb
from zfast.security.sources import FixedSource, ServerSource, ServerState

if TYPE_CHECKING:
    from pathlib import Path

    from zfast.security.tokens import TokenDesk


class ServerSecurity:
    """Guards the sockets that a process binds on tcp, for one environment.

    Args:
        environment: Such as ``prod``.
        source: Where keys and policy come from; read at once, and again whenever it changes.
        limits: What strangers may cost, for each socket.

    Raises:
        ConfigError: Keys or policy are missing, malformed or open to others.

    Threads: any. A fork's child needs one of its own.
    """

    def __init__(
        self, environment: str, source: ServerSource, *, limits: Limits | None = None
    ) -> None:
        self.environment = environment
        self.limits = limits or Limits()
        self._pid = os.getpid()
        # Taken before the state is loaded: what changes from now on is a change to the reloader.
        self._signature = source.signature()
        state = source.load()
        if not state.pairs:
            raise ConfigError(
                "there is no server key", hint="make one with 'zfast keys new server'"
            )
        self._state = state
        self.access = Access(environment, state.policy, state.authorized, state.revoked)
        self._source = source
        self._reloader: Reloader | None = None
        #: By ``revoke``, and those whose file was seen: whatever is read later.
        self._revoked: frozenset[str] = state.revoked
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._tokens: TokenDesk | None = None

    @classmethod
    def load(
        cls,
        environment: str | None = None,
        *,
        folder: Path | None = None,
        limits: Limits | None = None,
    ) -> ServerSecurity:
        """With keys and policy from where the ``ZFAST_*`` variables say, else the key folder.

        Args:
            environment: None is that of ``ZFAST_ENVIRONMENT``, else ``default``.
            folder: The key folder; None is that of ``ZFAST_KEYS``, else the user's.

        Raises:
            ConfigError: As above.
        """
        from zfast.security.settings import load_settings
        from zfast.security.sources import SettingsSource

        settings = load_settings()
        if environment is not None:
            settings = settings.model_copy(update={"environment": environment})
        if folder is not None:
            settings = settings.model_copy(update={"keys": folder})
        return cls(settings.environment, SettingsSource(settings), limits=limits)

    @classmethod
    def from_keys(
        cls,
        secret: SecretSource | KeyPair,
        clients: Iterable[tuple[PublicKey, Role]],
        *,
        environment: str = "default",
        limits: Limits | None = None,
    ) -> ServerSecurity:
        """With keys at hand, such as those in a Prefect block, and no policy but the roles given.

        Args:
            secret: The server's secret key, or what holds or fetches it.
            clients: Public keys that may come in, each under a name of its own.
        """
        pair = secret if isinstance(secret, KeyPair) else KeyPair.from_secret(secret, "server")
        state = _fixed_state(((pair, float("inf")),), clients, environment)
        return cls(environment, FixedSource(state), limits=limits)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """What clients are to trust; the one for new clients first."""
        return tuple(pair.public for pair in self._state.valid_pairs()[0])

    def guard(
        self,
        guarded: zmq.Socket[bytes],
        *,
        verbs: Iterable[Verb],
        takes_tokens: bool = False,
        beside_tokens: bool = False,
        on_change: Callable[[], None] | None = None,
    ) -> Door:
        """Guard a socket of zfast's context before it is bound; bind it with ``Door.bind``.

        Args:
            verbs: What the socket is for: a peer that may do none of these is not let in.
            takes_tokens: Where the policy has issuers, let peers with an unknown key in for a
                moment, to present a token: the owner asks ``Door.take_token`` of each message, and
                takes nothing else from them: ``Door.authorise`` refuses it.
            beside_tokens: Another door of this security takes them: a peer whose key is unknown
                yet is refused for now, not for good.
            on_change: Called on another thread when ``Door.maintain`` has something to do.

        Raises:
            ConfigError, TransportError: The socket could not be guarded.
        """
        if self._pid != os.getpid():
            raise ConfigError("this security belongs to the parent process", hint="load it anew")
        with self._lock:
            if self._reloader is None and not isinstance(self._source, FixedSource):
                self._reloader = Reloader(self._source, self._signature, self._take, self._revoke)
            if takes_tokens and self.access.policy.issuers:
                self._token_desk()  # or say now what is missing
        return Door(
            guarded,
            access=self.access,
            keys=lambda: self._state.valid_pairs(),
            verbs=frozenset(verbs),
            tokens=self._desk if takes_tokens else None,
            beside_tokens=beside_tokens,
            limits=self.limits,
            on_change=on_change,
        )

    def reload(self) -> None:
        """Look at the files now instead of in half a second.

        Raises:
            ConfigError: They cannot be read; what was in force stays in force.
        """
        if self._reloader is not None:
            self._reloader.look()

    def revoke(self, key: PublicKey) -> None:
        """Cut a key's connections and let it in no more, in this process; see ``KeyFolder.revoke``
        for good."""
        self._revoke(frozenset({key.z85}))

    def replace_clients(self, clients: Iterable[tuple[PublicKey, Role]]) -> None:
        """Let these in instead of those given to ``from_keys``; who is out of it is cut.

        What was revoked stays so.

        Raises:
            ConfigError: The keys come from files, which say who may come in.
        """
        if not isinstance(self._source, FixedSource):
            raise ConfigError(
                "who may come in is said by the files that this security was loaded from",
                hint="authorize keys there, or make it with ServerSecurity.from_keys",
            )
        state = _fixed_state(self._state.pairs, clients, self.environment)
        self._source = FixedSource(state)
        self._take(state)

    def close(self) -> None:
        """End the threads. Doors that are open stay guarded by what was last known."""
        with self._lock:
            reloader, self._reloader = self._reloader, None
            tokens, self._tokens = self._tokens, None
        if reloader is not None:
            reloader.stop()
            self._signature = reloader.signature
        if tokens is not None:
            tokens.close()

    def _desk(self) -> TokenDesk:
        with self._lock:
            return self._token_desk()

    def _token_desk(self) -> TokenDesk:
        if self._tokens is None:
            try:
                from zfast.security.tokens import TokenDesk
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"tokens need {error.name}", hint="pip install 'zfast[security]'"
                ) from error
            self._tokens = TokenDesk()
        return self._tokens

    def _revoke(self, keys: frozenset[str]) -> None:
        with self._taking:
            if not keys <= self._revoked:
                self._put_in_force(self._state, keys)

    def _take(self, state: ServerState) -> None:
        with self._taking:
            self._put_in_force(state, state.revoked)

    def _put_in_force(self, state: ServerState, more_revoked: frozenset[str]) -> None:
        revoked = more_revoked - self._revoked
        self._revoked |= more_revoked
        self._state = state
        changed = self.access.replace(state.policy, state.authorized, self._revoked)
        for key in revoked:
            record("key revoked", level=20, key=fingerprint(key), environment=self.environment)
        record(
            "policy reloaded",
            level=20,
            environment=self.environment,
            rules=len(state.policy.rules),
            keys=len(state.authorized),
            changed=len(changed),
        )
        process_gate().command(lambda: None)  # a review of everybody who is connected


def _fixed_state(
    pairs: tuple[tuple[KeyPair, float], ...],
    clients: Iterable[tuple[PublicKey, Role]],
    environment: str,
) -> ServerState:
    named = [(key, key.name or key.fingerprint, role) for key, role in clients]
    return ServerState(
        pairs,
        {key.z85: name for key, name, _ in named},
        frozenset(),
        Policy(
            rules=tuple(Rule(role, (environment,), key=key.fingerprint) for key, _, role in named)
        ),
    )
