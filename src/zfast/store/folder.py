"""The store in a folder: one file an object, written beside and renamed, read by mapping it.

New objects are written to ``<basepath>/.zfast/`` under a random name and renamed into place, so
that nobody ever sees a part of one. A writer holds a lock on its file; the kernel lets go of it
when the writer dies, however it dies, and the next writer sweeps away what is no longer locked.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal

from zfast.codec import Payload
from zfast.errors import ConfigError, KeyNotFoundError, StoreError
from zfast.store.format import NO_TOKEN, StoredObject, build, parse

Durability = Literal["process", "power"]

#: Folder below the basepath for files that are being written.
TEMPORARY_FOLDER = ".zfast"
#: Below this an object is read into memory: cheaper than a mapping, and no descriptor is held.
MAP_MIN_NBYTES = 128 * 1024
#: Before Python 3.13 each mapping holds a descriptor, and Prefect's cache may keep 1000 results.
#: Beyond this many, objects are read into memory.
MAX_MAPPED = 256
SWEEP_INTERVAL_S = 60.0
MAX_NAME_NBYTES = 255

_IOV_MAX = max(os.sysconf("SC_IOV_MAX"), 16)
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_HINTS = {
    errno.ENOSPC: "free some space, or give the storage another basepath",
    errno.EDQUOT: "the quota is used up: free some space, or give the storage another basepath",
    errno.EFBIG: "the file system or `ulimit -f` does not allow so large a file",
    errno.EACCES: "the folder must be readable and writable by this user",
    errno.EPERM: "the folder must be readable and writable by this user",
    errno.EROFS: "the file system is read-only: give the storage another basepath",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "there are objects below that key: it names a folder",
    errno.ENOTEMPTY: "there are objects below that key: it names a folder",
    errno.EMFILE: "too many open files: see `ulimit -n`",
}


class FolderStore:
    """Objects in a folder of this host, or of a file system that several hosts mount.

    Args:
        basepath: The folder; made with mode 0700 when the first object is written.
        durability: "process": an object survives the death of its writer. "power": it is also on
            the disk before `put` returns.
    """

    def __init__(self, basepath: str, *, durability: Durability = "process") -> None:
        """Take a folder; nothing is made or read yet."""
        self.basepath = os.path.realpath(os.path.expanduser(basepath))
        self.durability = durability
        self._temporary_folder = os.path.join(self.basepath, TEMPORARY_FOLDER)
        self._next_sweep = 0.0

    def path_of(self, key: str) -> str:
        """Return the file of a key: below the basepath, always.

        Args:
            key: A relative path, or an absolute one below the basepath.

        Raises:
            ConfigError: The key leads out of the basepath or cannot be a file's name.
        """
        parts = PurePosixPath(key).parts
        if parts and parts[0].startswith("/"):
            base = PurePosixPath(self.basepath).parts
            if parts[: len(base)] != base:
                raise ConfigError(f"the key {key!r} is outside of the store {self.basepath}")
            parts = parts[len(base) :]
        if not parts:
            raise ConfigError(f"the key {key!r} names no object")
        if ".." in parts or parts[0] == TEMPORARY_FOLDER or "\0" in key:
            raise ConfigError(
                f"the key {key!r} is not allowed",
                hint=f"a key has no '..', no NUL and does not begin with {TEMPORARY_FOLDER!r}",
            )
        try:
            too_long = any(len(os.fsencode(part)) > MAX_NAME_NBYTES for part in parts)
        except UnicodeEncodeError as error:
            raise ConfigError(f"the key {key!r} cannot be a file's name: {error}") from error
        if too_long:
            raise ConfigError(
                f"the key {key[:40]!r}… has a part longer than {MAX_NAME_NBYTES} bytes",
                hint="shorten it, or divide it by slashes",
            )
        return os.path.join(self.basepath, *parts)

    def put(
        self,
        key: str,
        content: bytes | memoryview,
        payload: Payload | None = None,
        token: bytes = NO_TOKEN,
    ) -> None:
        """Store one object under a key, whole or not at all, in place of an older one.

        Content and buffers are written from where they are. They may be changed again as soon as
        this returns.

        Raises:
            StoreError: The folder cannot be written; nothing is left behind.
            ConfigError: The key is not allowed.
        """
        path = self.path_of(key)
        parts = build(content, payload, token)
        try:
            self._sweep()
            self._make_folder(os.path.dirname(path))
            fd, temporary = self._create()
            try:
                _write(fd, parts)
                if self.durability == "power":
                    os.fsync(fd)
                os.rename(temporary, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(fd)
            if self.durability == "power":
                _sync_folder(os.path.dirname(path))
        except OSError as error:
            raise _failure("cannot write", path, error) from error

    def get(self, key: str) -> StoredObject:
        """Open the object under a key. It stays readable when it is overwritten or deleted.

        Raises:
            KeyNotFoundError: There is none.
            ObjectCorruptError: What is there is not a whole object.
            StoreError: It cannot be read.
        """
        return open_object(self.path_of(key))

    def exists(self, key: str) -> bool:
        """Say whether there is an object under a key, without reading it."""
        return os.path.isfile(self.path_of(key))

    def delete(self, key: str) -> None:
        """Remove the object under a key. Readers that have it open keep it.

        Raises:
            KeyNotFoundError: There is none.
            StoreError: It cannot be removed.
        """
        path = self.path_of(key)
        try:
            os.unlink(path)
        except OSError as error:
            raise _failure("cannot delete", path, error) from error

    def list(self) -> Iterator[str]:
        """Name every key, folder by folder."""
        for folder, folders, files in os.walk(self.basepath):
            if folder == self.basepath and TEMPORARY_FOLDER in folders:
                folders.remove(TEMPORARY_FOLDER)
            folders.sort()
            for file in sorted(files):
                yield os.path.relpath(os.path.join(folder, file), self.basepath)

    def _create(self) -> tuple[int, str]:
        """Make a new file to write to, locked as long as its descriptor is open."""
        self._make_folder(self._temporary_folder)
        while True:
            path = os.path.join(self._temporary_folder, secrets.token_hex(16))
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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

    def _sweep(self) -> None:
        """Remove the files of writers that died."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_INTERVAL_S
        try:
            names = os.listdir(self._temporary_folder)
        except OSError:
            return
        for name in names:
            path = os.path.join(self._temporary_folder, name)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            except OSError:
                pass  # Its writer is alive, or has just renamed it.
            finally:
                os.close(fd)

    def _make_folder(self, path: str) -> None:
        # os.makedirs gives its mode to the last folder only.
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(path)):
                raise  # some file systems, such as /proc, say so of what they will not make
            self._make_folder(os.path.dirname(path))
            self._make_folder(path)
            return
        if self.durability == "power":
            _sync_folder(os.path.dirname(path))


def open_object(path: str) -> StoredObject:
    """Open the object in a file.

    Large ones are mapped privately: their buffers are read when they are touched, and writing to
    them changes this process's pages alone.

    Raises:
        KeyNotFoundError: There is no such file.
        ObjectCorruptError: It is not a whole object.
        StoreError: It cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "a folder")
            data = memoryview(_read(fd, status.st_size))
        finally:
            os.close(fd)
    except OSError as error:
        raise _failure("cannot read", path, error) from error
    return parse(data, name=path)


def _read(fd: int, nbytes: int) -> bytearray | mmap.mmap:
    if nbytes >= MAP_MIN_NBYTES:
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY, trackfd=False)
        if len(_mapped) < MAX_MAPPED:
            mapped = mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY)
            _mapped.add(mapped)
            return mapped
    data = bytearray(nbytes)
    done = 0
    with memoryview(data) as view:
        while count := os.preadv(fd, [view[done:]], done):
            done += count
    del data[done:]
    return data


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


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failure(what: str, path: str, error: OSError) -> StoreError:
    if what != "cannot write" and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return KeyNotFoundError(f"there is no object {path}", errno=error.errno)
    return StoreError(
        f"{what} {path}: {error.strerror}",
        errno=error.errno,
        hint=_HINTS.get(error.errno or 0),
    )
