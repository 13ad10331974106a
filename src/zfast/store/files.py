"""One file of a store: written whole or not at all, read by mapping it.

A file that is being written is locked (``flock``) through its open descriptor. The kernel lets go
of the lock when the writer dies, however it dies: what is no longer locked is nobody's.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from zfast.errors import KeyNotFoundError, StoreError, UnknownObjectError
from zfast.store.mounts import is_shared_between_hosts

#: Below this an object is read into memory: cheaper than a mapping, and no descriptor is held.
MAP_MIN_NBYTES = 128 * 1024
#: Before Python 3.13 each mapping holds a descriptor, and Prefect's cache may keep 1000 results.
#: Beyond this many, objects are read into memory.
MAX_MAPPED = 256
#: A shared file system says ESTALE when another host replaced the file between look-up and read.
STALE_RETRIES = 10

_Read = TypeVar("_Read")
_IOV_MAX = max(os.sysconf("SC_IOV_MAX"), 16)
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_HINTS = {
    errno.ENOSPC: "free some space (`zfast store gc`), or give the storage another basepath",
    errno.EDQUOT: "the quota is used up: free some space (`zfast store gc`), or give the storage "
    "another basepath",
    errno.EFBIG: "the file system or `ulimit -f` does not allow so large a file",
    errno.EACCES: "the folder must be readable and writable by this user",
    errno.EPERM: "the folder must be readable and writable by this user",
    errno.EROFS: "the file system is read-only: give the storage another basepath",
    errno.ENOENT: "the folder was removed meanwhile, or cannot be made there: look at its parents",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "there are objects below that key: it names a folder",
    errno.ENOTEMPTY: "there are objects below that key: it names a folder",
    errno.ELOOP: "it is a symbolic link, and a store follows none: put the object itself there",
    errno.EMFILE: "too many open files: see `ulimit -n`",
    errno.ENFILE: "the system has too many open files: see `sysctl fs.file-max`",
    errno.ENOMEM: "there is not enough memory to read it: free some, or raise the limit",
    errno.EIO: "the disk or its connection failed: see the system's log, then `zfast store verify`",
    errno.ESTALE: "the shared file system lost the file: mount it again",
}
_OTHER_HINT = "what was stored before is untouched: mend the cause and run it again"


def read_file(path: str) -> memoryview:
    """Return a file's bytes: private, writable, ``(nbytes,)`` uint8.

    A large file is mapped, copy-on-write: its bytes are read when they are touched, and stay
    readable when the file is replaced or removed. On a file system that hosts share, where removal
    by another host would pull the pages away, every file is read into memory.

    Raises:
        KeyNotFoundError: There is no such file.
        UnknownObjectError: It is no regular file.
        StoreError: It cannot be read.
    """
    return read_from(path, lambda fd, status: memoryview(_map_or_read(fd, status)))


def read_from(
    path: str, read: Callable[[int, os.stat_result], _Read], *, is_use: bool = True
) -> _Read:
    """Open a regular file and read from it; again from the start if it went stale meanwhile.

    Args:
        path: The file.
        read: Reads what is wanted from the descriptor, given the file's status too.
        is_use: False, and reading leaves the time of the last use as it is, where the system can.

    Raises:
        KeyNotFoundError: There is no such file.
        UnknownObjectError: It is no regular file.
        StoreError: It cannot be opened or read, or what `read` raises.
    """
    n_left = STALE_RETRIES
    while True:
        n_left -= 1
        try:
            fd = _open(path, is_use=is_use)
            try:
                status = os.fstat(fd)
                _check_regular(path, status)
                return read(fd, status)
            finally:
                os.close(fd)
        except StoreError:
            raise
        except OSError as error:
            if error.errno != errno.ESTALE or not n_left:
                raise failure("cannot read", path, error) from error


def _open(path: str, *, is_use: bool) -> int:
    # Not blocking: a named pipe has no end to wait for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    no_use = 0 if is_use else getattr(os, "O_NOATIME", 0)
    try:
        return os.open(path, flags | no_use)
    except PermissionError:
        if not no_use:
            raise
        return os.open(path, flags)  # somebody else's file


def _check_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise not_found(f"{path}: it is a folder")
    raise UnknownObjectError(f"{path} is neither a file nor a folder", hint="remove it")


def _map_or_read(fd: int, status: os.stat_result) -> bytearray | mmap.mmap:
    nbytes = status.st_size
    if nbytes >= MAP_MIN_NBYTES and not is_shared_between_hosts(status.st_dev):
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY, trackfd=False)
        if len(_mapped) < MAX_MAPPED:
            mapped = mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY)
            _mapped.add(mapped)
            return mapped
    return read_start(fd, nbytes)


def read_start(fd: int, nbytes: int) -> bytearray:
    """Read a file's first bytes into memory; fewer where it ends before.

    Raises:
        OSError: They cannot be read.
    """
    data = bytearray(nbytes)
    done = 0
    with memoryview(data) as view:
        while count := os.preadv(fd, [view[done:]], done):
            done += count
    del data[done:]
    return data


def replace_file(path: str, parts: Iterable[memoryview], folder: str, *, durable: bool) -> None:
    """Write a file beside others under a name of its own, then rename it into place.

    Args:
        path: The file; its folder exists.
        parts: What to write, in order; each ``(nbytes,)`` uint8, not copied.
        folder: Where to write it, on the same file system; it exists.
        durable: The bytes, and the name, are on the disk before this returns.

    Raises:
        OSError: It cannot be written. Nothing is left behind; an older file is untouched.
    """
    fd, temporary = create_locked(folder)
    try:
        _write(fd, parts)
        if durable:
            _sync(fd)
        # Network file systems say that the disk is full when a descriptor is closed; ours must
        # stay open, and locked, until the file has its name.
        os.close(os.dup(fd))
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    if durable:
        sync_folder(os.path.dirname(path))


def create_locked(folder: str) -> tuple[int, str]:
    """Make a new file under a random name, locked as long as its descriptor is open.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        path = os.path.join(folder, secrets.token_hex(16))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A sweep came between: it has the lock and removes the file.
            os.close(fd)
            continue
        except OSError:
            # No locks on this file system. Then nobody can take one to sweep, either.
            return fd, path
        if os.fstat(fd).st_nlink:
            return fd, path
        os.close(fd)


def remove_unlocked(path: str, *, dry_run: bool = False) -> bool:
    """Remove a file that `create_locked` made, if its process is gone; say whether it was.

    Args:
        dry_run: Leave it, and say whether it would be removed.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not dry_run:
            os.unlink(path)
    except OSError:
        return False  # Its writer is alive, or has just renamed it.
    finally:
        os.close(fd)
    return True


def _write(fd: int, parts: Iterable[memoryview]) -> None:
    pending = deque(part for part in parts if part.nbytes)
    while pending:
        written = os.writev(fd, list(islice(pending, _IOV_MAX)))
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        # A call may write less than it was given: 2 GiB at most, or what the disk still holds.
        while pending and written >= pending[0].nbytes:
            written -= pending.popleft().nbytes
        if written:
            pending[0] = pending[0][written:]


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync stops at the drive's cache there
    else:
        os.fsync(fd)


def sync_folder(path: str) -> None:
    """Bring a folder's names to the disk.

    Raises:
        OSError: It cannot be opened or written.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def not_found(path: str, number: int = errno.ENOENT) -> KeyNotFoundError:
    """Make the error for an object that is not there."""
    return KeyNotFoundError(
        f"there is no object {path}",
        errno=number,
        hint="it was never stored, or was deleted, expired or evicted: its task computes it "
        "(with a key_storage: when run once with refresh_cache=True, or with the key's metadata "
        "deleted)",
    )


def failure(what: str, path: str, error: OSError) -> StoreError:
    """Make our error of the system's: what happened, to which object, and what to do."""
    if what != "cannot write" and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return not_found(path, error.errno)
    return StoreError(
        f"{what} {path}: {error.strerror}",
        errno=error.errno,
        hint=_HINTS.get(error.errno or 0, _OTHER_HINT),
    )
