"""Files that only their owner may read: how they are written, and what is checked on reading."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zfast.errors import ConfigError

#: No key, policy or token file is larger.
MAX_FILE_NBYTES = 1 << 20


def is_closed(info: os.stat_result, *, readable: bool) -> bool:
    """Whether nobody but this user, and root, may change a file or folder.

    Args:
        readable: Others may look at it.
    """
    return info.st_uid in (os.geteuid(), 0) and not info.st_mode & (0o022 if readable else 0o077)


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it, for its owner alone.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path}: {error.strerror}", hint="name another one"
        ) from error


def check_private_folder(path: Path) -> None:
    """Refuse a folder that others may enter or that is somebody else's.

    Raises:
        ConfigError: Why, and the command that mends it.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise ConfigError(
            f"the key folder {path} cannot be read: {error.strerror}",
            hint="make it with 'zfast keys new server'",
        ) from error
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"the key folder {path} is not a folder")
    _check_owner(path, info)
    if info.st_mode & 0o077:
        raise ConfigError(
            f"the key folder {path} is open to others: mode {stat.S_IMODE(info.st_mode):04o}",
            hint=f"chmod 700 {path}",
        )


def read_private_file(path: Path) -> bytes:
    """Read a file that holds a secret.

    Owner: this user, or root. Mode: nothing for others; nothing for the group either unless root
    owns it, which is how Kubernetes mounts secrets for a pod with an ``fsGroup``.

    Raises:
        ConfigError: It cannot be read, or others can read it too.
    """
    data, info = _read(path)
    _check_owner(path, info)
    mounted = info.st_uid == 0 and os.geteuid() != 0
    if info.st_mode & (0o037 if mounted else 0o077):
        raise ConfigError(
            f"{path} holds a secret and is open to others: mode {stat.S_IMODE(info.st_mode):04o}",
            hint=f"chmod 600 {path}, or 'defaultMode: 0400' for a mounted secret; if others could "
            "read it, make a new key",
        )
    return data


def read_protected_file(path: Path) -> bytes:
    """Read a file that anyone may see and only its owner may change, such as a public key.

    Raises:
        ConfigError: It cannot be read, or others can write to it.
    """
    data, info = _read(path)
    _check_owner(path, info)
    if info.st_mode & 0o022:
        raise ConfigError(
            f"{path} decides who comes in and others can write to it: "
            f"mode {stat.S_IMODE(info.st_mode):04o}",
            hint=f"chmod go-w {path}",
        )
    return data


def is_there(path: Path) -> bool:
    """Whether a path names something; a link to nowhere is something, too.

    Raises:
        ConfigError: Nothing says that it is missing.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return True


def has_protected_folder(path: Path) -> bool:
    """Whether a folder is there; one that is there is checked.

    Raises:
        ConfigError: As ``check_protected_folder``; also where nothing says that it is missing.
    """
    if not is_there(path):
        return False
    check_protected_folder(path)
    return True


def check_protected_folder(path: Path) -> None:
    """Refuse a folder to which others may add files, unless it is mounted to be read only.

    Raises:
        ConfigError: Why.
    """
    try:
        info = path.stat()
        is_read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError as error:
        raise _unreadable_folder(path, error) from error
    if is_read_only:
        return
    _check_owner(path, info)
    if info.st_mode & 0o022:
        raise ConfigError(
            f"the folder {path} decides who comes in and others can write to it: "
            f"mode {stat.S_IMODE(info.st_mode):04o}",
            hint=f"chmod go-w {path}, or mount it read-only",
        )


def list_folder(path: Path, suffix: str) -> list[Path]:
    """The files of a folder whose names end so, in the order of their names.

    ``Path.glob`` finds none where it may not look, which would be as if nobody were revoked.

    Raises:
        ConfigError: It cannot be listed.
    """
    try:
        names = os.listdir(path)
    except OSError as error:
        raise _unreadable_folder(path, error) from error
    return [path / name for name in sorted(names) if name.endswith(suffix)]


def list_folders(path: Path) -> list[Path]:
    """The folders in a folder, in the order of their names.

    Raises:
        ConfigError: It cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            return sorted(path / entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise _unreadable_folder(path, error) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among those who lock this file, processes and threads.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_private_file(path: Path, text: str) -> None:
    """Write a secret, 0600 from its first byte on, whole or not at all."""
    _write(path, text, 0o600)


def write_public_file(path: Path, text: str) -> None:
    """Write what anyone may read, whole or not at all."""
    _write(path, text, 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise _unwritable(path, error) from error


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    # What is checked is the open file: a name may come to mean another one.
    try:
        # Not waited for: a FIFO would block the open.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise ConfigError(f"{path} is not a file")
    with open(fd, "rb") as file:
        data = file.read(MAX_FILE_NBYTES + 1)
    if len(data) > MAX_FILE_NBYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_NBYTES} bytes")
    return data, info


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {path}: {error.strerror}")


def _unreadable_folder(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the folder {path} cannot be read: {error.strerror}",
        hint=f"it has to be there, belong to user {os.geteuid()} and have mode 0700; "
        "ZFAST_KEYS names another key folder",
    )


def _check_owner(path: Path, info: os.stat_result) -> None:
    if info.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path} belongs to user {info.st_uid}, not to this one",
            hint=f"chown {os.geteuid()} {path}",
        )
