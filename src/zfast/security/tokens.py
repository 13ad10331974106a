"""Bearer tokens that peers bring: checked off every hot path, bound to the key that brought them.

A token is believed only from the CURVE key that it belongs to: the key whose thumbprint stands in
its claim ``cnf``, or else the key that brought it first. First use is remembered by this process
until the token ends; ``cnf`` holds everywhere and at once.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from zfast.errors import AccessDeniedError, TokenError
from zfast.security.access import Access, Grant, Identity
from zfast.security.audit import logger, record
from zfast.security.curve_keys import fingerprint
from zfast.security.issuer import Issuer, unverified_issuer
from zfast.security.policy import IssuerConfig

#: Tokens that wait to be checked; one more is refused.
MAX_PENDING = 256
#: Tokens whose first use is remembered; when none has ended, one more is refused.
MAX_BINDINGS = 100_000
#: Refusals that need not stand.
_CHECKING, _FULL = "another one is being checked", "too many tokens at a time"
_FOR_NOW = (_CHECKING, _FULL)
#: A slow issuer holds up one of these.
_N_THREADS = 4


class TokenDesk:
    """Checks tokens and keeps who brought them. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._issuers: dict[str, Issuer] = {}
        self._bindings: dict[tuple[str, str], tuple[str, float]] = {}
        self._pending: set[str] = set()
        self._executor: ThreadPoolExecutor | None = None

    def present(self, access: Access, key: str, token: str, max_nbytes: int) -> Future[Identity]:
        """Check a token that came from a key; see ``Door.present``."""
        future: Future[Identity] = Future()
        refusal = self._enter(key, token, max_nbytes)
        if refusal:
            record("token refused", reason=refusal, key=fingerprint(key))
            error = TokenError(f"the token was refused: {refusal}")
            error.for_now = refusal in _FOR_NOW
            future.set_exception(error)
            return future
        assert self._executor is not None
        self._executor.submit(self._work, access, key, token, future)
        return future

    def check(self, issuers: tuple[IssuerConfig, ...], token: str) -> tuple[str, Mapping[str, Any]]:
        """The name of a token's issuer, and its claims. Blocks on the network.

        Raises:
            TokenError: It is not good.
        """
        named = unverified_issuer(token)
        # Several of one issuer differ in their audience: each may be the one.
        error = TokenError(f"the policy has no issuer {named!r}")
        for config in issuers:
            if config.issuer == named:
                try:
                    return config.name, self._issuer(config).check(token)
                except TokenError as refused:
                    # One that need not stand says more than one that does.
                    error = error if error.for_now else refused
        raise error

    def close(self) -> None:
        """Take no more; what is being checked ends first."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def _enter(self, key: str, token: str, max_nbytes: int) -> str:
        if not isinstance(token, str) or len(token) > max_nbytes:
            return "longer than allowed"
        with self._lock:
            if key in self._pending:
                return _CHECKING
            if len(self._pending) >= MAX_PENDING:
                return _FULL
            self._pending.add(key)
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_N_THREADS, "zfast-tokens")
        return ""

    def _work(self, access: Access, key: str, token: str, future: Future[Identity]) -> None:
        outcome: Identity | Exception
        try:
            outcome = self._take(access, key, token)
        except (TokenError, AccessDeniedError) as error:
            outcome = error
            record("token refused", reason=_label(error), key=fingerprint(key), detail=str(error))
        except Exception as error:
            logger.error("a token could not be checked: %s", type(error).__name__)
            outcome = TokenError("the token could not be checked")
        finally:
            with self._lock:
                self._pending.discard(key)
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _take(self, access: Access, key: str, token: str) -> Identity:
        name, claims = self.check(access.policy.issuers, token)
        config = next(issuer for issuer in access.policy.issuers if issuer.name == name)
        grant = _grant(config, claims)
        if grant.ended:
            raise TokenError(f"a token of {name} is refused: it has ended")
        last = access.grant_of(key)
        if last is not None and last.subject != grant.subject:
            raise TokenError(f"the key speaks for {last.subject}, the token is for another")
        self._bind(_token_id(name, claims, token), key, claims, grant.until_monotonic_s)
        identity = access.grant(key, grant)
        if identity is None:
            raise AccessDeniedError(
                f"{grant.subject} has no role in {access.environment}",
                hint="'zfast token check' shows the rules",
            )
        record(
            "token taken",
            subject=identity.subject,
            role=identity.role.value,
            key=identity.key,
            environment=identity.environment,
        )
        return identity

    def _bind(
        self, token_id: tuple[str, str], key: str, claims: Mapping[str, Any], until_s: float
    ) -> None:
        print_ = fingerprint(key)
        confirmation = claims.get("cnf")
        if confirmation is not None:
            bound = confirmation.get("jkt") if isinstance(confirmation, dict) else None
            if not isinstance(bound, str) or not hmac.compare_digest(
                bound.encode(), print_.encode()
            ):
                raise TokenError("the token belongs to another key, by its claim cnf")
        with self._lock:
            known = self._bindings.get(token_id)
            if known is not None and known[0] != print_:
                raise TokenError("the token belongs to another key, which brought it first")
            if known is None and len(self._bindings) >= MAX_BINDINGS:
                now = time.monotonic()
                self._bindings = {i: b for i, b in self._bindings.items() if b[1] > now}
                if len(self._bindings) >= MAX_BINDINGS:
                    raise TokenError("too many tokens are in use")
            self._bindings[token_id] = (print_, until_s)

    def _issuer(self, config: IssuerConfig) -> Issuer:
        with self._lock:
            issuer = self._issuers.get(config.name)
            if issuer is None or issuer.config != config:
                issuer = self._issuers[config.name] = Issuer(config)
            return issuer


def _grant(config: IssuerConfig, claims: Mapping[str, Any]) -> Grant:
    until_s = float(claims["exp"]) + config.leeway_s
    left_s = until_s - time.time()
    subject = f"{config.name}:{claims['sub']}"
    return Grant(subject, config.name, claims, until_s, time.monotonic() + left_s)


def _token_id(issuer: str, claims: Mapping[str, Any], token: str) -> tuple[str, str]:
    identifier = claims.get("jti")
    if isinstance(identifier, str) and identifier:
        return issuer, f"jti {identifier}"
    # Not the signature, which whoever holds an ECDSA token can write in two ways.
    signed, _, _ = token.rpartition(".")
    return issuer, hashlib.sha256(signed.encode()).hexdigest()


def _label(error: Exception) -> str:
    """A phrase without anything of the peer's in it, for the metric."""
    text = str(error)
    for phrase in ("belongs to another key", "has no role", "cannot be had", "speaks for"):
        if phrase in text:
            return phrase
    return "not valid"
