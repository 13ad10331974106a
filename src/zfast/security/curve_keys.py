"""CURVE keys: a public one that anyone may see, a secret one that shows itself nowhere."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeAlias

import zmq
from zmq.utils import z85

from zfast.errors import ConfigError

#: A key in Z85, the alphabet of ZeroMQ's tools.
Z85_LENGTH = 40
_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{43}")


class HasSecretValue(Protocol):
    """What pydantic's ``SecretStr`` offers, and so the fields of Prefect's blocks."""

    def get_secret_value(self) -> str:
        """The secret."""


#: A secret, what holds one, or a function that fetches either when it is needed.
SecretSource: TypeAlias = "str | HasSecretValue | Callable[[], SecretSource]"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A peer's public key: its name in every table here.

    Args:
        z85: 40 characters.
        name: What its owner called it; proves nothing.

    Raises:
        ConfigError: It is not a key.
    """

    z85: str
    name: str = ""

    def __post_init__(self) -> None:
        if not any(_decode(self.z85, "public")):
            raise ConfigError("the public key is all zeros, which no key pair has")

    @property
    def fingerprint(self) -> str:
        """What people compare, see ``fingerprint``."""
        return fingerprint(self.z85)


class SecretKey:
    """A secret key; repr, str, pickle and comparison tell nothing of it."""

    __slots__ = ("_z85",)

    def __init__(self, z85: str) -> None:
        _decode(z85, "secret")
        self._z85 = z85

    def reveal(self) -> bytes:
        """The key itself, to hand to libzmq at once; never keep it in a variable."""
        return self._z85.encode()

    def __repr__(self) -> str:
        return "<SecretKey>"

    def __reduce__(self) -> NoReturn:
        raise ConfigError("a secret key does not leave its process by pickle")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair of this process's own."""

    public: PublicKey
    secret: SecretKey

    @classmethod
    def generate(cls, name: str = "") -> KeyPair:
        """A new pair, from libsodium."""
        public, secret = zmq.curve_keypair()
        return cls(PublicKey(public.decode(), name), SecretKey(secret.decode()))

    @classmethod
    def from_secret(cls, source: SecretSource, name: str = "") -> KeyPair:
        """The pair that a secret key belongs to.

        Raises:
            ConfigError: It is not a key.
        """
        secret = SecretKey(resolve_secret(source).strip())
        return cls(PublicKey(zmq.curve_public(secret.reveal()).decode(), name), secret)


def resolve_secret(source: SecretSource) -> str:
    """The secret in whatever holds it."""
    while not isinstance(source, str):
        source = source() if callable(source) else source.get_secret_value()
    return source


def fingerprint(key: str) -> str:
    """The RFC 7638 thumbprint of a public key as an OKP key on X25519, 43 characters.

    It is what a token's ``cnf`` claim may carry as ``jkt``.
    """
    x = _base64url(z85.decode(key.encode()))
    canonical = f'{{"crv":"X25519","kty":"OKP","x":"{x}"}}'
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def is_fingerprint(text: str) -> bool:
    """Whether a text looks like one, whether it is a key's or not."""
    return _FINGERPRINT.fullmatch(text) is not None


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(key: str, kind: str) -> bytes:
    try:
        if len(key) != Z85_LENGTH:
            raise ValueError
        data: bytes = z85.decode(key.encode("ascii"))
    except (ValueError, KeyError, TypeError, struct.error):
        # Without its cause, which would show the key.
        data = b""
    if len(data) != 32 or z85.encode(data) != key.encode():
        raise ConfigError(
            f"that is no {kind} CURVE key: one has {Z85_LENGTH} characters of Z85",
            hint="make one with 'zfast keys new'",
        )
    return data
