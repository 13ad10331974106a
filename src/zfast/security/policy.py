"""Ordered rules: which key or claim has which role where. The first that matches decides.

::

    [[issuer]]
    name = "okta"
    issuer = "https://acme.okta.com/oauth2/aus1"
    audience = "zfast://prod"

    [[rule]]
    key = "worker-*"              # the name of an authorized key, or its fingerprint
    role = "Worker"
    environments = ["prod"]

    [[rule]]
    issuer = "okta"
    claim = "groups"              # or a path: ["kubernetes.io", "namespace"]
    matches = "prefect-prod-*"
    role = "Developer"
    environments = ["prod"]

Who matches no rule has no role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from zfast.errors import ConfigError
from zfast.security.curve_keys import is_fingerprint
from zfast.security.private_files import is_there, read_protected_file
from zfast.security.roles import Role

#: What issuers sign with that may be believed: never a shared secret, never "none".
ALGORITHMS = ("RS256", "ES256", "ES384", "EdDSA")
#: Claims that whoever asks for the token chooses.
_CHOSEN_BY_THE_CALLER = frozenset({"request_tags"})


class IssuerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer of bearer tokens that is believed.

    Attributes:
        name: What rules call it.
        issuer: The token's ``iss``, exactly.
        audience: What the token must be for.
        jwks_uri: Its keys; found by OpenID Connect discovery when it is not given.
        algorithms: A subset of ``ALGORITHMS``.
        leeway_s: How far clocks may differ.
    """

    name: str
    issuer: str
    audience: str
    jwks_uri: str | None = None
    algorithms: tuple[str, ...] = ALGORITHMS
    leeway_s: float = 30.0


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule: either ``key``, or ``issuer`` with ``claim`` and ``matches``."""

    role: Role
    environments: tuple[str, ...]
    key: str | None = None
    issuer: str | None = None
    claim: str | tuple[str, ...] | None = None
    matches: str | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """Where the claim lies in the token."""
        if self.claim is None:
            return ()
        return (self.claim,) if isinstance(self.claim, str) else self.claim

    def __str__(self) -> str:
        if self.key is not None:
            what = f"key {self.key}"
        else:
            what = f"{self.issuer}: {' / '.join(self.path)} matches {self.matches}"
        return f"{what} → {self.role.value} in {', '.join(self.environments)}"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A peer that proved an authorized key."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A peer that brought a token whose signature, issuer, audience and times are right."""

    issuer: str
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """What one rule said of a peer."""

    rule: str
    matched: bool
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of a peer in an environment; ``role`` is None when no rule matched."""

    role: Role | None
    steps: tuple[Step, ...]

    @property
    def rule(self) -> str:
        """The rule that decided."""
        return self.steps[-1].rule if self.role is not None else ""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The issuers that are believed, and the rules in their order."""

    issuers: tuple[IssuerConfig, ...] = msgspec.field(default=(), name="issuer")
    rules: tuple[Rule, ...] = msgspec.field(default=(), name="rule")

    def decide(self, facts: KeyFacts | TokenFacts, environment: str) -> Decision:
        """Ask the rules in their order; the last step is the one that decided."""
        steps: list[Step] = []
        for rule in self.rules:
            why = _mismatch(rule, facts, environment)
            steps.append(Step(str(rule), why is None, why or "matches"))
            if why is None:
                return Decision(rule.role, tuple(steps))
        return Decision(None, tuple(steps))

    def decide_everywhere(self, facts: KeyFacts) -> dict[str, Decision]:
        """Those that give a key a role, by environment; ``*`` is each that no rule names."""
        named = {"*"}.union(*(rule.environments for rule in self.rules))
        decisions = {name: self.decide(facts, name) for name in sorted(named)}
        return {name: each for name, each in decisions.items() if each.role is not None}


def parse_policy(text: str | bytes, *, source: str = "the policy") -> Policy:
    """Read a policy from TOML.

    Raises:
        ConfigError: It is malformed, or has a rule that no caution would write.
    """
    try:
        policy = msgspec.toml.decode(text, type=Policy)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not a policy: {error}") from error
    except ImportError as error:
        raise ConfigError("TOML needs tomli", hint="pip install 'zfast[security]'") from error
    names = [issuer.name for issuer in policy.issuers]
    if len(set(names)) < len(names):
        raise ConfigError(f"{source}: two issuers have one name")
    for issuer in policy.issuers:
        _check_issuer(issuer, source)
    for number, rule in enumerate(policy.rules, 1):
        _check_rule(rule, names, f"{source}: rule {number}")
    return policy


def read_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        ConfigError: It is missing or malformed, or others may write to it.
    """
    if not is_there(path):
        raise ConfigError(f"there is no policy {path}", hint="see ZFAST_POLICY_FILE")
    return parse_policy(read_protected_file(path), source=str(path))


def _mismatch(rule: Rule, facts: KeyFacts | TokenFacts, environment: str) -> str | None:
    """Why a rule does not match, or None."""
    if environment not in rule.environments and "*" not in rule.environments:
        return f"is not for {environment}"
    if isinstance(facts, KeyFacts):
        if rule.key is None:
            return "is for tokens"
        # What looks like a fingerprint is one: a key may not be called like another's.
        if is_fingerprint(rule.key):
            is_meant = facts.fingerprint == rule.key
        else:
            is_meant = fnmatchcase(facts.name, rule.key)
        if is_meant:
            return None
        return f"the key is {facts.name}"
    if rule.issuer is None:
        return "is for keys"
    if rule.issuer != facts.issuer:
        return f"the issuer is {facts.issuer}"
    values = _claim(facts.claims, rule.path)
    if values is None:
        return "the token has no such claim"
    assert rule.matches is not None
    if any(fnmatchcase(value, rule.matches) for value in values):
        return None
    return f"the claim is {', '.join(values) or 'empty'}"


def _claim(claims: Mapping[str, Any], path: tuple[str, ...]) -> list[str] | None:
    """The claim's text, or each text of its list; None when it is missing or something else."""
    value: Any = claims
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return None


def _check_issuer(issuer: IssuerConfig, source: str) -> None:
    for url in (issuer.issuer, issuer.jwks_uri):
        if url is not None and not _is_trusted_url(url):
            raise ConfigError(
                f"{source}: {url!r} is not https://", hint="http is for loopback only"
            )
    unknown = set(issuer.algorithms) - set(ALGORITHMS)
    if unknown or not issuer.algorithms:
        raise ConfigError(
            f"{source}: issuer {issuer.name} has algorithms {sorted(unknown) or 'none'}",
            hint=f"those allowed are {', '.join(ALGORITHMS)}",
        )
    if not issuer.audience:
        raise ConfigError(f"{source}: issuer {issuer.name} has an empty audience")
    if not 0 <= issuer.leeway_s <= 60:
        raise ConfigError(f"{source}: leeway_s must be from 0 to 60, not {issuer.leeway_s}")


def _is_trusted_url(url: str) -> bool:
    loopback = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")
    return url.startswith(("https://", *loopback))


def _check_rule(rule: Rule, issuers: list[str], where: str) -> None:
    if not rule.environments:
        raise ConfigError(f"{where} names no environment")
    of_token = (rule.issuer, rule.claim, rule.matches)
    if rule.key is not None:
        if of_token != (None, None, None) or not rule.key:
            raise ConfigError(f"{where} is for a key and for a token", hint="make it two rules")
        return
    if None in of_token or not rule.path or not all((rule.matches, *rule.path)):
        raise ConfigError(f"{where} needs either key, or issuer, claim and matches")
    if rule.issuer not in issuers:
        raise ConfigError(f"{where} names issuer {rule.issuer!r}, which the policy does not have")
    if _CHOSEN_BY_THE_CALLER & set(rule.path):
        raise ConfigError(
            f"{where} reads {' / '.join(rule.path)}, which whoever asks for the token chooses",
            hint="use sub or principal_tags",
        )
