"""One environment's table of identities: which key may do what, in memory, swapped as a whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zfast.security.curve_keys import fingerprint
from zfast.security.policy import KeyFacts, Policy, TokenFacts
from zfast.security.roles import Role, Verb


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is, and why.

    Attributes:
        subject: The key's name, or ``issuer:sub`` of its token.
        role: What it may do, by ``role.verbs``.
        environment: Where.
        key: The fingerprint of its CURVE key.
        rule: The rule of the policy that gave it the role.
    """

    subject: str
    role: Role
    environment: str
    key: str
    rule: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows the key that brought it.

    Attributes:
        subject: ``issuer:sub``.
        issuer: The name that rules call it by.
        claims: Checked; the token itself is not kept.
        until_s: When it ends on the wall clock, leeway included.
        until_monotonic_s: The same on a clock that nobody sets back.
    """

    subject: str
    issuer: str
    claims: Mapping[str, Any] = field(repr=False)
    until_s: float
    until_monotonic_s: float

    @property
    def ended(self) -> bool:
        """Whether either clock says so."""
        return time.time() >= self.until_s or time.monotonic() >= self.until_monotonic_s


@dataclass(frozen=True)
class _Table:
    """Never changed, only replaced: readers need no lock."""

    policy: Policy
    revoked: frozenset[str]
    #: Authorized keys that are not revoked, by their Z85: their names.
    names: Mapping[str, str]
    identities: Mapping[str, Identity]


class Access:
    """Who may do what in one environment. Threads: any; a look-up takes no lock and does no I/O.

    Args:
        environment: Such as ``prod``.
        policy: See ``zfast.security.policy``.
        authorized: Names of the keys that may come in, by their Z85.
        revoked: Keys that may not, whatever else is said of them.
    """

    def __init__(
        self,
        environment: str,
        policy: Policy,
        authorized: Mapping[str, str],
        revoked: frozenset[str] = frozenset(),
    ) -> None:
        self.environment = environment
        self._lock = threading.Lock()
        self._grants: dict[str, tuple[Grant, Identity | None]] = {}
        self._table = self._build(policy, authorized, revoked)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._table.policy

    def replace(
        self, policy: Policy, authorized: Mapping[str, str], revoked: frozenset[str]
    ) -> frozenset[str]:
        """Put another table in force; the keys that lost their identity or have another."""
        with self._lock:
            before = self._table
            self._table = self._build(policy, authorized, revoked)
            self._grants = {
                key: (grant, self._identify(grant, key))
                for key, (grant, _) in self._grants.items()
                if key not in revoked
            }
        return frozenset(
            key
            for key, identity in before.identities.items()
            if self._table.identities.get(key) != identity
        )

    def is_revoked(self, key: str) -> bool:
        """Whether a key is on the list of the revoked."""
        return key in self._table.revoked

    def name_of(self, key: str) -> str:
        """The name of an authorized key, else nothing."""
        return self._table.names.get(key, "")

    def identities(self, key: str) -> list[Identity]:
        """Who the holder of a key is now: by the key itself, and by the token that it brought."""
        table = self._table
        if key in table.revoked:
            return []
        found = []
        own = table.identities.get(key)
        if own is not None:
            found.append(own)
        granted = self._grants.get(key)
        if granted is not None and granted[1] is not None and not granted[0].ended:
            found.append(granted[1])
        return found

    def find(self, key: str, verb: Verb) -> Identity | None:
        """The identity that may do ``verb``, or None."""
        for identity in self.identities(key):
            if verb in identity.role.verbs:
                return identity
        return None

    def grant(self, key: str, grant: Grant) -> Identity | None:
        """Keep what a token allows a key; the identity, or None if the policy has no role for it.

        A renewed token takes the place of the last one.
        """
        with self._lock:
            if key in self._table.revoked:
                return None
            identity = self._identify(grant, key)
            self._grants[key] = (grant, identity)
            self._forget_ended()
        return identity

    def grant_of(self, key: str) -> Grant | None:
        """The grant of a key that has not ended."""
        granted = self._grants.get(key)
        return None if granted is None or granted[0].ended else granted[0]

    def _forget_ended(self) -> None:
        for key in [key for key, (grant, _) in self._grants.items() if grant.ended]:
            del self._grants[key]

    def _identify(self, grant: Grant, key: str) -> Identity | None:
        facts = TokenFacts(grant.issuer, grant.claims)
        decision = self._table.policy.decide(facts, self.environment)
        if decision.role is None:
            return None
        print_ = fingerprint(key)
        return Identity(grant.subject, decision.role, self.environment, print_, decision.rule)

    def _build(
        self, policy: Policy, authorized: Mapping[str, str], revoked: frozenset[str]
    ) -> _Table:
        names = {key: name for key, name in authorized.items() if key not in revoked}
        identities = {}
        for key, name in names.items():
            print_ = fingerprint(key)
            decision = policy.decide(KeyFacts(name, print_), self.environment)
            if decision.role is not None:
                identities[key] = Identity(
                    name, decision.role, self.environment, print_, decision.rule
                )
        return _Table(policy, revoked, names, identities)
