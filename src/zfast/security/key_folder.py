"""A folder of keys and who may come in; public keys in it are files for configuration management.

::

    FOLDER/                          0700
        policy.toml                  rules, see zfast.security.policy
        authorized/NAME.pub          peers that may come in, if a rule gives them a role
        revoked/NAME-FINGERPRINT.pub peers that may not, whatever a rule says
        ENVIRONMENT/NAME.key         a key pair of this host's own, 0600; NAME: server, client, …
        ENVIRONMENT/NAME.pub         its public key, to hand out
        ENVIRONMENT/NAME.previous.key  the pair before the last rotation, valid until it retires
        ENVIRONMENT/trusted/NAME.pub servers that clients of this host connect to
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from zfast.errors import ConfigError
from zfast.security.curve_keys import Z85_LENGTH, KeyPair, PublicKey, fingerprint
from zfast.security.file_signatures import folder_signature
from zfast.security.key_files import (
    OwnKey,
    check_name,
    check_own_name,
    is_name,
    public_text,
    read_pair,
    read_public_key,
    read_public_keys,
    write_pair,
)
from zfast.security.key_rules import with_key_rule
from zfast.security.policy import KeyFacts, Policy, read_policy
from zfast.security.private_files import (
    check_private_folder,
    has_protected_folder,
    is_there,
    list_folder,
    list_folders,
    locked,
    make_private_folder,
    read_protected_file,
    write_public_file,
)
from zfast.security.roles import Role

_POLICY = "policy.toml"
_LOCK = ".lock"
_AUTHORIZED = "authorized"
_REVOKED = "revoked"
_TRUSTED = "trusted"
_PREVIOUS = "previous"
#: A longer grace window is a mistake.
MAX_GRACE_S = 10 * 365 * 24 * 3600.0


class KeyFolder:
    """Reads and changes a key folder. Every read checks modes and owners anew.

    Args:
        path: The folder; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- reading -----------------------------------------------------------------------

    def own_keys(self, environment: str, name: str) -> list[OwnKey]:
        """The pair of a name, then the one before it if it has not retired yet.

        Raises:
            ConfigError: There is none, or a file is open to others or malformed.
        """
        check_private_folder(self.path)
        folder = self.path / check_name(environment, "an environment")
        current = folder / f"{check_own_name(name)}.key"
        if not is_there(current):
            kind = name if name in ("server", "client") else f"client --name {name}"
            raise ConfigError(
                f"there is no key {current}",
                hint=f"make it with 'zfast keys new {kind} --environment {environment}'",
            )
        check_private_folder(folder)
        found = [read_pair(environment, name, current)]
        previous = folder / f"{name}.{_PREVIOUS}.key"
        if is_there(previous):
            old = read_pair(environment, name, previous)
            if old.retires is None or old.retires > time.time():
                found.append(old)
        return found

    def list_own(self) -> list[OwnKey]:
        """Every pair of every environment; retired ones too."""
        check_private_folder(self.path)
        return [
            read_pair(environment, path.name.removesuffix(".key"), path)
            for environment in self.environments()
            for path in list_folder(self.path / environment, ".key")
        ]

    def environments(self) -> list[str]:
        """Those that have own pairs here, or servers that are trusted."""
        return [
            folder.name
            for folder in list_folders(self.path)
            if is_name(folder.name)
            and folder.name not in (_AUTHORIZED, _REVOKED)
            and (list_folder(folder, ".key") or is_there(folder / _TRUSTED))
        ]

    def authorized(self) -> dict[str, str]:
        """Names of the keys that may come in, by their Z85."""
        return self._public_keys(_AUTHORIZED)

    def revoked(self) -> dict[str, str]:
        """The keys that may not come in, by their Z85: each name with its fingerprint's start."""
        return self._public_keys(_REVOKED)

    def readable_revoked(self) -> Iterator[str]:
        """Each revoked key whose file is whole; others are passed over."""
        files: list[Path] = []
        with suppress(ConfigError):
            files = list_folder(self.path / _REVOKED, ".pub")
        for path in files:
            with suppress(ConfigError):
                yield read_public_key(path).z85

    def trusted(self, environment: str) -> dict[str, str]:
        """Names of the servers that clients connect to, by their Z85."""
        return self._public_keys(check_name(environment, "an environment"), _TRUSTED)

    def policy(self) -> Policy:
        """The policy; without its file one that allows nothing."""
        rules = self.path / _POLICY
        has_rules = has_protected_folder(self.path) and is_there(rules)
        return read_policy(rules) if has_rules else Policy()

    def signature(self) -> tuple[object, ...]:
        """Differs when any file here has changed. Reads no file, never raises."""
        return folder_signature(self.path)

    # ---- changing ----------------------------------------------------------------------

    def new(self, environment: str, name: str) -> OwnKey:
        """Make a key pair of a name.

        Raises:
            ConfigError: It is there already.
        """
        with self._changing():
            folder = self._environment(environment)
            path = folder / f"{check_own_name(name)}.key"
            if is_there(path):
                raise ConfigError(
                    f"there is a key {path} already", hint="'zfast keys rotate' replaces it"
                )
            return self._write_new(folder, name)

    def rotate(self, environment: str, name: str, grace_s: float) -> OwnKey:
        """Put a new pair in a pair's place; the old one stays valid for ``grace_s`` seconds.

        Raises:
            ConfigError: A server's key is in its grace window still, which this would end, and
                ``grace_s`` is not 0: clients that have not heard of the last rotation would be
                locked out. Or ``grace_s`` is negative or above ``MAX_GRACE_S``.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:  # nor NaN
            raise ConfigError(
                f"a grace window of {grace_s / 3600:g} h", hint="give from 0 h to ten years"
            )
        with self._changing():
            old, *older = self.own_keys(environment, name)
            if older and name == "server" and grace_s > 0:
                raise ConfigError(
                    f"{environment}/{name} was rotated a while ago: the key before is still served",
                    hint="wait until it retires ('zfast keys list'), or end both at once with "
                    "--grace-hours 0",
                )
            folder = self._environment(environment)
            write_pair(folder / f"{name}.{_PREVIOUS}.key", old.pair, time.time() + grace_s)
            return self._write_new(folder, name)

    def authorize(
        self, key: PublicKey, name: str, role: Role | None, environment: str | None
    ) -> Path:
        """Let a key in: its file, and, with a role, a rule at the end of the policy.

        Args:
            role: None is what the rules say of the name, in every environment.

        Raises:
            ConfigError: It is revoked, the name is another key's, an earlier rule gives the name
                another role, or rules would give it roles elsewhere too, which it does not have
                yet. Nothing was changed.
        """
        with self._changing():
            if key.z85 in self.revoked():
                raise ConfigError(f"key {key.fingerprint} is revoked", hint="make a new one")
            path = self._folder(_AUTHORIZED) / f"{check_name(name, 'a key')}.pub"
            known = self.authorized()
            if is_there(path) and known.get(key.z85) != name:
                raise ConfigError(f"{path} is another key", hint="choose another --name")
            if role is not None and environment is not None:
                rules = self.path / _POLICY
                text = read_protected_file(rules).decode() if is_there(rules) else ""
                changed = with_key_rule(
                    text,
                    KeyFacts(name, key.fingerprint),
                    role,
                    check_name(environment, "an environment"),
                    is_known=known.get(key.z85) == name,
                )
                if changed != text:
                    write_public_file(rules, changed)
            write_public_file(path, public_text(PublicKey(key.z85, name)))
            return path

    def trust(self, environment: str, key: PublicKey, name: str) -> Path:
        """Let clients of this host connect to a server."""
        with self._changing():
            folder = self._environment(environment) / _TRUSTED
            make_private_folder(folder)
            path = folder / f"{check_name(name, 'a key')}.pub"
            write_public_file(path, public_text(PublicKey(key.z85, name)))
            return path

    def revoke(self, key: PublicKey, name: str) -> Path:
        """Let a key in no more, whatever a rule or a token says."""
        with self._changing():
            if not is_name(name):  # a file of somebody else's may say anything
                name = "key"
            path = self._folder(_REVOKED) / f"{name}-{key.fingerprint[:16]}.pub"
            write_public_file(path, public_text(PublicKey(key.z85, name)))
            # The one is there before the other is gone: there is no moment in between.
            for known in (self.path / _AUTHORIZED).glob("*.pub"):
                with suppress(ConfigError, OSError):  # what stays lets nobody in
                    if read_public_key(known).z85 == key.z85:
                        known.unlink()
            return path

    def find(self, what: str, authorized: Mapping[str, str] | None = None) -> PublicKey:
        """The public key that a name, a fingerprint or its beginning, a file or Z85 stands for.

        Args:
            authorized: Names by Z85, where they are not those of this folder.

        Raises:
            ConfigError: None, or more than one.
        """
        if Path(what).suffix == ".pub" and is_there(Path(what)):
            return read_public_key(Path(what))
        known = {**self.revoked(), **(self.authorized() if authorized is None else authorized)}
        found = {
            key: name
            for key, name in known.items()
            if what in (name, key) or (len(what) >= 8 and fingerprint(key).startswith(what))
        }
        if not found and len(what) == Z85_LENGTH:
            return PublicKey(what)
        if len(found) != 1:
            raise ConfigError(
                f"{what!r} is {'more than one key' if found else 'no key here'}",
                hint="'zfast keys list' shows names and fingerprints",
            )
        return PublicKey(*next(iter(found.items())))

    def _write_new(self, folder: Path, name: str) -> OwnKey:
        pair = KeyPair.generate(name)
        write_pair(folder / f"{name}.key", pair, None)
        write_public_file(folder / f"{name}.pub", public_text(pair.public))
        return OwnKey(folder.name, name, pair, None)

    def _environment(self, environment: str) -> Path:
        if environment in (_AUTHORIZED, _REVOKED):
            raise ConfigError(f"an environment cannot be called {environment!r}")
        return self._folder(check_name(environment, "an environment"))

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        make_private_folder(folder)
        return folder

    def _public_keys(self, *names: str) -> dict[str, str]:
        """Those in a folder of this one; none where it is missing."""
        folder = self.path
        # Whoever may write to one on the way may put another in its place.
        for name in ("", *names):
            folder /= name
            if not has_protected_folder(folder):
                return {}
        return read_public_keys(folder)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone, also among processes."""
        make_private_folder(self.path)
        check_private_folder(self.path)
        with locked(self.path / _LOCK):
            yield
