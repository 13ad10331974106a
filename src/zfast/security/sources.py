"""Where keys come from: a key folder, mounted files, environment variables, or secrets at hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zfast.errors import ConfigError
from zfast.security.curve_keys import KeyPair, PublicKey
from zfast.security.file_signatures import file_signature
from zfast.security.held_secrets import taken_secret
from zfast.security.key_files import read_mounted_pair, read_public_keys, read_server_keys
from zfast.security.key_folder import KeyFolder
from zfast.security.policy import Policy, read_policy
from zfast.security.private_files import is_there

if TYPE_CHECKING:
    from zfast.security.settings import SecuritySettings


@dataclass(frozen=True)
class ServerState:
    """All that a server needs to know of keys, as of one moment.

    Attributes:
        pairs: Key pairs to serve, the one for new clients first; each with the time, in seconds
            since the epoch, when it retires.
        authorized: Names of the keys that may come in, by their Z85.
    """

    pairs: tuple[tuple[KeyPair, float], ...]
    authorized: Mapping[str, str]
    revoked: frozenset[str]
    policy: Policy = field(repr=False)

    def valid_pairs(self) -> tuple[list[KeyPair], float]:
        """The pairs that have not retired, and the monotonic time when the next one does."""
        now = time.time()
        valid = [(pair, retires) for pair, retires in self.pairs if retires > now]
        next_s = min((retires for _, retires in valid), default=float("inf"))
        return [pair for pair, _ in valid], time.monotonic() + (next_s - now)


class ServerSource(Protocol):
    """Gives a server's state, again and again."""

    def load(self) -> ServerState:
        """The state now. Raises ConfigError."""

    def load_revoked(self) -> frozenset[str]:
        """The revoked keys that can be read, whatever else is broken."""

    def signature(self) -> tuple[object, ...]:
        """Differs when ``load`` would."""


class FixedSource:
    """A state that never changes by itself."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def load(self) -> ServerState:
        """The state."""
        return self._state

    def load_revoked(self) -> frozenset[str]:
        """Those of the state."""
        return self._state.revoked

    def signature(self) -> tuple[object, ...]:
        """Always the same."""
        return ()


class SettingsSource:
    """A server's state from where the settings say: mounted files first, then the key folder."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._folder = KeyFolder(settings.key_folder)
        self._had_policy = False

    def load(self) -> ServerState:
        """Read everything anew.

        Raises:
            ConfigError: Something is missing, malformed or open to others. To take away a policy
                that was there takes every role away.
        """
        settings = self._settings
        pairs: list[tuple[KeyPair, float]]
        fixed = _pair_at_hand("server", settings.server_secret_key_file)
        if fixed is not None:
            pairs = [(fixed, float("inf"))]
        else:
            pairs = [
                (own.pair, own.retires if own.retires is not None else float("inf"))
                for own in self._folder.own_keys(settings.environment, "server")
            ]
        return ServerState(
            tuple(pairs),
            load_authorized(settings),
            frozenset(self._folder.revoked()),
            self._load_policy(),
        )

    def _load_policy(self) -> Policy:
        mounted = self._settings.policy_file
        if self._had_policy and mounted is not None and not is_there(mounted):
            return Policy()
        policy = load_policy(self._settings)
        self._had_policy = True
        return policy

    def load_revoked(self) -> frozenset[str]:
        """From each file of a revoked key that is whole."""
        return frozenset(self._folder.readable_revoked())

    def signature(self) -> tuple[object, ...]:
        """Of every file that ``load`` reads."""
        settings = self._settings
        files = (settings.server_secret_key_file, settings.policy_file)
        mounted = settings.authorized_folder
        return (
            self._folder.signature(),
            KeyFolder(mounted).signature() if mounted is not None else (),
            tuple(file_signature(path) for path in files if path is not None),
        )


def load_authorized(settings: SecuritySettings) -> dict[str, str]:
    """Names of the keys that may come in to a server here, by their Z85.

    Raises:
        ConfigError: One is malformed, or others can write there.
    """
    mounted = settings.authorized_folder
    if mounted is not None:
        return read_public_keys(mounted)
    return KeyFolder(settings.key_folder).authorized()


def load_policy(settings: SecuritySettings) -> Policy:
    """What a server here allows.

    Raises:
        ConfigError: The file is malformed, or others can write to it, or a mounted one is missing.
    """
    mounted = settings.policy_file
    return read_policy(mounted) if mounted is not None else KeyFolder(settings.key_folder).policy()


def load_client_pair(settings: SecuritySettings, name: str) -> KeyPair:
    """The key pair that this process shows to servers.

    Raises:
        ConfigError: There is none, or it is open to others; or a variable gives another one than
            that of a name which is not the usual ``client``.
    """
    fixed = _pair_at_hand("client", settings.client_secret_key_file)
    if fixed is not None and name != "client":
        variable = "ZFAST_CLIENT_SECRET_KEY"
        if settings.client_secret_key_file is not None:
            variable += "_FILE"
        raise ConfigError(
            f"is the key {name!r} meant, or that of {variable}?",
            hint="leave out the name, or unset the variable",
        )
    if fixed is not None:
        return fixed
    return KeyFolder(settings.key_folder).own_keys(settings.environment, name)[0].pair


def load_trusted_servers(settings: SecuritySettings) -> tuple[PublicKey, ...]:
    """The keys that a server may have, when this process connects to it.

    On a host that has the server's own key too, that key is trusted.

    Raises:
        ConfigError: There is none.
    """
    texts = settings.server_public_keys.split(",")
    keys = [PublicKey(text.strip()) for text in texts if text.strip()]
    if settings.server_public_keys_file is not None:
        keys += read_server_keys(settings.server_public_keys_file)
    folder = KeyFolder(settings.key_folder)
    if not keys:
        keys = [PublicKey(key, name) for key, name in folder.trusted(settings.environment).items()]
    if not keys and is_there(folder.path / settings.environment / "server.key"):
        keys = [own.pair.public for own in folder.own_keys(settings.environment, "server")]
    if not keys:
        raise ConfigError(
            f"no server of environment {settings.environment!r} is trusted here",
            hint="bring its server.pub here and run 'zfast keys trust server.pub "
            f"--environment {settings.environment}', or set ZFAST_SERVER_PUBLIC_KEYS",
        )
    return tuple(keys)


def _pair_at_hand(kind: str, path: Path | None) -> KeyPair | None:
    if path is not None:
        return read_mounted_pair(kind, path)
    secret = taken_secret(f"ZFAST_{kind.upper()}_SECRET_KEY")
    return KeyPair.from_secret(secret, kind) if secret is not None else None
