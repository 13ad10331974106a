"""An issuer of bearer tokens: its keys, fetched with limits, and what a token of it must have."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import URLError

import jwt
from jwt import PyJWKClient, PyJWKClientError
from jwt.exceptions import PyJWKClientConnectionError

from zfast.errors import TokenError
from zfast.security.policy import IssuerConfig

#: How old the issuer's keys may be: one that it withdraws is believed no longer than this.
KEYS_LIFESPAN_S = 120.0
#: How often at most unknown key ids lead to a fetch; and so how long a new key may take.
UNKNOWN_KEY_COOLDOWN_S = 10.0
#: How long a failed fetch is not tried again.
OUTAGE_COOLDOWN_S = 5.0
FETCH_TIMEOUT_S = 5.0
MAX_DOCUMENT_NBYTES = 256 << 10
#: No token that lasts longer is taken.
MAX_LIFETIME_S = 24 * 3600.0


class Issuer:
    """Checks the tokens of one issuer. Blocks on the network. Threads: any."""

    def __init__(self, config: IssuerConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._keys: _BoundedKeyClient | None = None

    def check(self, token: str) -> Mapping[str, Any]:
        """The claims of a token whose signature, issuer, audience and times are right.

        Raises:
            TokenError: They are not, or the issuer's keys cannot be had.
        """
        config = self.config
        try:
            key = self._client().get_signing_key(_key_id(token))
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key.key,
                algorithms=_algorithms_of(key, config.algorithms),
                issuer=config.issuer,
                audience=config.audience,
                leeway=config.leeway_s,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub"],
                    "verify_sub": True,
                    "strict_aud": False,
                },
            )
        except PyJWKClientConnectionError as error:
            down = TokenError(f"the keys of {config.issuer} cannot be had", detail=_reason(error))
            down.for_now = True
            raise down from None
        except _NotKnownYetError as error:
            unknown = TokenError(f"a token of {config.name} is refused: {_reason(error)}")
            unknown.for_now = True
            raise unknown from None
        except (jwt.PyJWTError, PyJWKClientError, RecursionError, OverflowError) as error:
            # Without its cause, whose frames hold the token.
            raise TokenError(f"a token of {config.name} is refused: {_reason(error)}") from None
        if not claims["sub"] or claims["exp"] - claims["iat"] > MAX_LIFETIME_S:
            raise TokenError(
                f"a token of {config.name} is refused: it has no subject or lasts longer than "
                f"{MAX_LIFETIME_S / 3600:.0f} h"
            )
        return claims

    def _client(self) -> _BoundedKeyClient:
        with self._lock:
            if self._keys is None:
                uri = self.config.jwks_uri
                self._keys = _BoundedKeyClient(self.config.issuer, uri)
            return self._keys


class _NotKnownYetError(PyJWKClientError):
    """A key id is unknown, and the issuer was not asked for it: it was asked a moment ago."""


class _BoundedKeyClient(PyJWKClient):
    """PyJWT's client, with a bound on the document and on how often an outage is noticed."""

    def __init__(self, issuer: str, jwks_uri: str | None) -> None:
        super().__init__(
            jwks_uri or f"{issuer.rstrip('/')}/.well-known/openid-configuration",
            cache_keys=False,
            lifespan=KEYS_LIFESPAN_S,
            timeout=FETCH_TIMEOUT_S,
            cooldown_duration=UNKNOWN_KEY_COOLDOWN_S,
        )
        self._issuer = issuer
        self._discovers = jwks_uri is None
        self._down_until_s = 0.0

    def get_signing_key(self, kid: str) -> jwt.PyJWK:
        """The issuer's key of this id, or PyJWKClientError; _NotKnownYetError in the cooldown."""
        with self._client_lock:
            fetched_s = self._last_successful_fetch
            try:
                return super().get_signing_key(kid)
            except PyJWKClientConnectionError:
                raise
            except PyJWKClientError as error:
                if self._last_successful_fetch == fetched_s:
                    raise _NotKnownYetError(str(error)) from error
                raise

    def fetch_data(self) -> Any:
        """The issuer's keys, or PyJWKClientConnectionError at once while it is known to be down."""
        if time.monotonic() < self._down_until_s:
            raise PyJWKClientConnectionError("the issuer did not answer a moment ago")
        try:
            # Each time: an issuer may move its keys, and go on answering where they were.
            keys = _fetch(self._discover() if self._discovers else self.uri)
        except (OSError, ValueError, HTTPException) as error:
            # URLError is an OSError, JSON's error a ValueError, a broken answer an HTTPException.
            self._down_until_s = time.monotonic() + OUTAGE_COOLDOWN_S
            raise PyJWKClientConnectionError(str(error)) from error
        if self.jwk_set_cache is not None:
            self.jwk_set_cache.put(keys)
        self._last_successful_fetch = time.monotonic()
        return keys

    def _discover(self) -> str:
        """Where its keys are."""
        document = _fetch(self.uri)
        uri = document.get("jwks_uri")
        if document.get("issuer") != self._issuer or not isinstance(uri, str):
            raise ValueError(f"its discovery document is for {document.get('issuer')!r}")
        if not uri.startswith("https://") and self._issuer.startswith("https://"):
            raise ValueError("its discovery document names keys that are not on https")
        return uri


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nobody to another server."""


def _fetch(uri: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(_NoRedirect())
    with opener.open(uri, timeout=FETCH_TIMEOUT_S) as response:
        data = response.read(MAX_DOCUMENT_NBYTES + 1)
    if len(data) > MAX_DOCUMENT_NBYTES:
        raise URLError(f"its answer is longer than {MAX_DOCUMENT_NBYTES} bytes")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise URLError("its answer is no JSON object")
    return document


def unverified_issuer(token: str) -> str:
    """Whom a token says it is from: only good for choosing who checks it.

    Raises:
        TokenError: It is no signed token.
    """
    try:
        claims = jwt.decode(token, options={"verify_signature": False, "verify_exp": False,
                                            "verify_aud": False, "verify_iss": False,
                                            "verify_iat": False, "verify_nbf": False,
                                            "verify_sub": False, "verify_jti": False})  # fmt: skip
    except (jwt.PyJWTError, ValueError, RecursionError, OverflowError):
        raise TokenError("that is no signed token (JWT)") from None
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise TokenError("the token names no issuer")
    return issuer


def _key_id(token: str) -> str:
    key_id = jwt.get_unverified_header(token).get("kid")
    if not isinstance(key_id, str):
        raise jwt.InvalidTokenError("it names no signing key")
    return key_id


def _algorithms_of(key: jwt.PyJWK, allowed: tuple[str, ...]) -> list[str]:
    """The one algorithm that the issuer's key is for, if it is allowed."""
    return [name for name in allowed if name == key.algorithm_name]


def _reason(error: Exception) -> str:
    """PyJWT's own words; they never hold the token."""
    return str(error) or type(error).__name__
