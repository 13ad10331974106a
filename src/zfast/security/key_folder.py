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

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zfast.errors import ConfigError
from zfast.security.curve_keys import Z85_LENGTH, KeyPair, PublicKey, fingerprint
from zfast.security.file_signatures import folder_signature
from zfast.security.key_files import (
    OwnKey,
    check_name,
    is_name,
    public_text,
    read_pair,
    read_public_key,
    read_public_keys,
    write_pair,
)
from zfast.security.policy import KeyFacts, Policy, key_rule, parse_policy, read_policy
from zfast.security.private_files import (
    check_private_folder,
    has_protected_folder,
    list_folder,
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
        current = folder / f"{check_name(name, 'a key')}.key"
        if not current.exists():
            kind = "server" if name == "server" else "client"
            raise ConfigError(
                f"there is no key {current}",
                hint=f"make it with 'zfast keys new {kind} --environment {environment}'",
            )
        check_private_folder(folder)
        found = [read_pair(environment, name, current)]
        previous = folder / f"{name}.{_PREVIOUS}.key"
        if previous.exists():
            old = read_pair(environment, name, previous)
            if old.retires is None or old.retires > time.time():
                found.append(old)
        return found

    def list_own(self) -> list[OwnKey]:
        """Every pair of every environment; retired ones too."""
        check_private_folder(self.path)
        return [
            read_pair(path.parent.name, path.name.removesuffix(".key"), path)
            for path in sorted(self.path.glob("*/*.key"))
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
        return read_policy(self.path / _POLICY) if has_protected_folder(self.path) else Policy()

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
            path = folder / f"{check_name(name, 'a key')}.key"
            if path.exists():
                raise ConfigError(
                    f"there is a key {path} already", hint="'zfast keys rotate' replaces it"
                )
            return self._write_new(folder, name)

    def rotate(self, environment: str, name: str, grace_s: float) -> OwnKey:
        """Put a new pair in a pair's place; the old one stays valid for ``grace_s`` seconds.

        Raises:
            ConfigError: A server's key is in its grace window still, which this would end, and
                ``grace_s`` is not 0: clients that have not heard of the last rotation would be
                locked out.
        """
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
            if path.exists() and known.get(key.z85) != name:
                raise ConfigError(f"{path} is another key", hint="choose another --name")
            if role is not None and environment is not None:
                rules = self.path / _POLICY
                text = read_protected_file(rules).decode() if rules.exists() else ""
                rule = key_rule(name, role, check_name(environment, "an environment"))
                changed = text if rule in text else text + rule
                facts = KeyFacts(name, key.fingerprint)
                _see_that_it_decides(changed, facts, role, environment)
                has = parse_policy(text) if known.get(key.z85) == name else Policy()
                _see_that_no_other_does(changed, facts, environment, has)
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
                with suppress(ConfigError):  # one that is broken lets nobody in
                    if read_public_key(known).z85 == key.z85:
                        known.unlink()
            return path

    def find(self, what: str) -> PublicKey:
        """The public key that a name, a fingerprint or its beginning, a file or Z85 stands for.

        Raises:
            ConfigError: None, or more than one.
        """
        if Path(what).suffix == ".pub" and Path(what).exists():
            return read_public_key(Path(what))
        known = {**self.revoked(), **self.authorized()}
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
        with open(self.path / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _see_that_it_decides(policy: str, facts: KeyFacts, role: Role, environment: str) -> None:
    decision = parse_policy(policy).decide(facts, environment)
    if decision.role is not role:
        raise ConfigError(
            f"an earlier rule decides on {facts.name} in {environment}: {decision.rule}",
            hint="choose another --name, or change that rule in policy.toml",
        )


def _see_that_no_other_does(policy: str, facts: KeyFacts, environment: str, has: Policy) -> None:
    """The key gets a role in the environment, and elsewhere none but those it ``has``."""
    had = has.decide_everywhere(facts)
    for other, decision in parse_policy(policy).decide_everywhere(facts).items():
        if other not in (environment, *had):
            raise ConfigError(
                f"{facts.name} would have a role elsewhere too: {decision.rule}",
                hint="choose another --name; or, if it is to have all that the rules say of this "
                "one, authorize it without --role",
            )
