"""The files that hold one key each: a public key that anyone may see, or a pair that nobody may."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zfast.errors import ConfigError
from zfast.security.curve_keys import KeyPair, PublicKey, SecretKey, is_fingerprint
from zfast.security.private_files import (
    check_protected_folder,
    list_folder,
    read_private_file,
    read_protected_file,
    write_private_file,
)

#: No Z85 has it, and each file that ``zfast keys`` writes does.
_QUOTE = b'"'
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class _PublicFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public: str
    name: str = ""
    fingerprint: str = ""


class _SecretFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public: str
    secret: str
    name: str = ""
    retires: float = 0.0


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key pair of this host's own.

    Attributes:
        retires: When it is no longer served, in seconds since the epoch; None is never.
    """

    environment: str
    name: str
    pair: KeyPair
    retires: float | None


def is_name(name: str) -> bool:
    """Whether a name is safe as part of a path and of a rule, and is no key's fingerprint."""
    return _NAME.fullmatch(name) is not None and not is_fingerprint(name)


def check_name(name: str, what: str) -> str:
    """A name that is safe as part of a path and of a rule.

    Raises:
        ConfigError: It is not.
    """
    if not is_name(name):
        raise ConfigError(
            f"{name!r} is no name for {what}", hint="use up to 64 letters, digits and . _ -"
        )
    return name


def check_own_name(name: str) -> str:
    """A name that a key pair of this host may have.

    Raises:
        ConfigError: It is not one, or would be the pair before another one's rotation.
    """
    if name.endswith(".previous"):
        raise ConfigError(
            f"{name!r} is no name for a key: so is called the one before a rotation",
            hint="choose another name",
        )
    return check_name(name, "a key")


def read_public_key(path: Path) -> PublicKey:
    """The key in a file of ours.

    Raises:
        ConfigError: It is none, or others may write to it.
    """
    return _parse_public_key(path, read_protected_file(path))


def read_public_keys(folder: Path) -> dict[str, str]:
    """Names of files by the keys in them: what a file calls itself proves nothing.

    Raises:
        ConfigError: One is malformed, the folder cannot be read, or others can write there.
    """
    check_protected_folder(folder)
    return {
        read_public_key(path).z85: path.name.removesuffix(".pub")
        for path in list_folder(folder, ".pub")
    }


def read_server_keys(path: Path) -> list[PublicKey]:
    """The key in a file of ours, or the bare Z85 keys of another, one a line.

    Raises:
        ConfigError: One is malformed, or others may write to it.
    """
    data = read_protected_file(path)
    if _QUOTE in data:
        return [_parse_public_key(path, data)]
    lines = data.decode("ascii", "replace").splitlines()
    return [PublicKey(line.strip()) for line in lines if line.strip()]


def _parse_public_key(path: Path, data: bytes) -> PublicKey:
    try:
        file = msgspec.toml.decode(data, type=_PublicFile)
        return PublicKey(file.public, file.name)
    except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
        if isinstance(error, ConfigError) and "Z85" not in str(error):
            raise
        raise ConfigError(f"{path} holds no public key of zfast: {error}") from error


def read_pair(environment: str, name: str, path: Path) -> OwnKey:
    """The pair in a file of ours.

    Raises:
        ConfigError: It is none, or is open to others.
    """
    return _parse_pair(environment, name, path, read_private_file(path))


def read_mounted_pair(name: str, path: Path) -> KeyPair:
    """The pair in a file of ours, or that of the bare Z85 secret key in another.

    Raises:
        ConfigError: It is none, or is open to others.
    """
    data = [read_private_file(path)]  # taken out: no frame of an error holds it
    if _QUOTE in data[0]:
        return _parse_pair("", name, path, data.pop()).pair
    return KeyPair.from_secret(data.pop().decode("ascii", "replace"), name)


def _parse_pair(environment: str, name: str, path: Path, data: bytes) -> OwnKey:
    file: _SecretFile | None = None
    pair: KeyPair | None = None
    retires, belongs = 0.0, False
    try:
        file = msgspec.toml.decode(data, type=_SecretFile)
        pair = KeyPair(PublicKey(file.public, file.name), SecretKey(file.secret))
        belongs = KeyPair.from_secret(file.secret).public.z85 == file.public
        retires = file.retires
    except (msgspec.DecodeError, UnicodeDecodeError, ConfigError):
        pass  # and not the cause of an error: it may quote the file
    # Gone before one is raised: there are tools that show the variables of its frames.
    del data
    file = None
    if pair is None:
        raise ConfigError(f"{path} holds no key pair of zfast")
    if not belongs:
        raise ConfigError(f"the public key in {path} is not that of its secret key")
    return OwnKey(environment, name, pair, retires or None)


def write_pair(path: Path, pair: KeyPair, retires: float | None) -> None:
    """Write a pair, for its owner alone; ``retires`` in seconds since the epoch."""
    write_private_file(
        path,
        "# SECRET key of zfast. Never copy it to another host: make one there.\n"
        f'name = "{pair.public.name}"\n'
        f'public = "{pair.public.z85}"\n'
        f'secret = "{pair.secret.reveal().decode()}"\n'
        + (f"retires = {retires:.3f}  # seconds since 1970\n" if retires is not None else ""),
    )


def public_text(key: PublicKey) -> str:
    """What a file of a public key holds."""
    return (
        "# Public key of zfast: safe to show and to keep in version control.\n"
        f'name = "{key.name}"\n'
        f'public = "{key.z85}"\n'
        f'fingerprint = "{key.fingerprint}"\n'
    )
