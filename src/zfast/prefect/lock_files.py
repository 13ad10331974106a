"""Locks that end with their process: files in a folder, each locked by the kernel (``flock``).

The file of a lock says who holds it, and until when if it is a lease. Three rules keep it sound:

- A lock is held by who has the kernel's lock on its file, and only while the file is at its path.
- A file is removed under the lock of the folder's ``guard`` only.
- A file says one thing: a new holder makes a new one. Only leases are written again, under the
  guard. So who finds a lease over, under the guard, may remove its file though it is locked.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from zfast.deadline import Deadline
from zfast.errors import LockError, StoreError
from zfast.prefect.lock_record import Record
from zfast.security.private_files import is_closed

SWEEP_INTERVAL_S = 60.0
#: Removing a file waits so long for others who do so, then leaves it: a file alone locks nothing.
GUARD_TIMEOUT_S = 1.0

_SUFFIX = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass
class _Held:
    fd: int  # the lock is held as long as it is open
    record: Record


# Of all folders in this process: a lock is released with another copy of what took it. `_registry`
# is also held while a file is opened and locked, so that no fork comes in between.
_registry = threading.RLock()
_held: dict[str, _Held] = {}
_next_sweeps: dict[str, float] = {}


def _after_fork_in_child() -> None:
    global _registry
    _registry = threading.RLock()
    # They are the parent's, and would outlive it while they are open here.
    for held in _held.values():
        os.close(held.fd)
    _held.clear()


os.register_at_fork(
    before=lambda: _registry.acquire(),
    after_in_parent=lambda: _registry.release(),
    after_in_child=_after_fork_in_child,
)


class LockFolder:
    """A folder of locks. Nothing here waits for a lock. Any thread and process may call.

    Args:
        basepath: The folder; made with mode 0700 when the first lock is taken.
    """

    def __init__(self, basepath: str) -> None:
        """Take a folder; nothing is made yet."""
        self.basepath = basepath

    def try_acquire(self, key: str, holder: str, hold_timeout: float | None) -> bool:
        """Take a lock, or renew its lease, if nobody else holds it.

        Raises:
            LockError: The folder is not this user's alone, or its file system has no locks.
            StoreError: The folder cannot be written.
        """
        path = self._path_of(key)
        record = Record.of(key, holder, hold_timeout)
        with _registry, _failures(path):
            held = _held.get(path)
            if held is not None and held.record.is_over():
                self._drop(path)
                held = None
            if held is not None:
                return held.record.holder == holder and self._renew(path, held, record)
            self._make_folder()
            self._sweep()
            fd = self._open_locked(path)
            if fd is None:
                found = self._look(path)
                return found is not None and found.holder == holder
            _held[path] = _Held(fd, record)
            try:
                record.write_to(fd)
            except BaseException:
                self._drop(path)
                raise
            return True

    def release(self, key: str, holder: str) -> None:
        """Let go of a lock.

        Raises:
            LockError: The holder does not hold it, or not any more; or another process does.
        """
        path = self._path_of(key)
        with _registry, _failures(path):
            held = _held.get(path)
            if held is not None and held.record.holder == holder:
                over = held.record.is_over()
                self._drop(path)
                if not over:
                    return
                raise LockError(
                    f"{holder} no longer held the lock on {key!r}: its lease was over",
                    hint="acquire it with a longer hold_timeout, or again in time",
                )
            record = self._look(path)
        if record is None:
            raise LockError(f"nobody holds the lock on {key!r}")
        raise LockError(
            f"the lock on {key!r} is held by {record.holder}, process {record.pid} on "
            f"{record.host}, not by {holder} here",
            hint="its holder releases it, or the end of that process",
        )

    def look(self, key: str) -> Record | None:
        """Say who holds a lock now; None if nobody does.

        The holder is "" while the lock is just being taken.
        """
        path = self._path_of(key)
        with _registry, _failures(path):
            return self._look(path)

    def _path_of(self, key: str) -> str:
        # Keys may be long, and hold slashes.
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        return os.path.join(self.basepath, digest[:32] + _SUFFIX)

    def _look(self, path: str) -> Record | None:
        held = _held.get(path)
        if held is not None:
            return None if held.record.is_over() else held.record
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            if _flock(fd, fcntl.LOCK_SH):
                return None
            record = Record.read_from(fd) or Record()
        finally:
            os.close(fd)
        return None if record.is_over() else record

    def _open_locked(self, path: str) -> int | None:
        """Make the file of a lock, locked; None if somebody else holds the lock."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            mine = False
            try:
                if _lock(fd):
                    # Removed since, or left by a holder that died?
                    mine = _is_at(fd, path) and not os.fstat(fd).st_size
                    if mine:
                        return fd
                    removed = self._remove(path, fd)
                else:
                    # When its lease is over, its process may live all the same: stopped, or busy.
                    record = Record.read_from(fd)
                    removed = record is not None and record.is_over()
                    removed = removed and self._remove(path, fd, only_if_over=True)
                if not removed:
                    return None
            finally:
                if not mine:
                    os.close(fd)

    def _renew(self, path: str, held: _Held, record: Record) -> bool:
        if held.record.monotonic_s is None and record.monotonic_s is None:
            return True
        with self._guard() as guarded:
            if not guarded or held.record.is_over() or not _is_at(held.fd, path):
                return False
            record.write_to(held.fd)
        held.record = record
        return True

    def _drop(self, path: str) -> None:
        held = _held.pop(path)
        try:
            self._remove(path, held.fd)
        finally:
            os.close(held.fd)

    def _remove(self, path: str, fd: int, *, only_if_over: bool = False) -> bool:
        """Remove the file open as `fd` from its path; False if that could not be done now."""
        with self._guard() as guarded:
            if not guarded:
                return False
            if only_if_over:
                record = Record.read_from(fd)
                if record is None or not record.is_over():
                    return False  # it was renewed
            if _is_at(fd, path):
                os.unlink(path)
            return True

    @contextmanager
    def _guard(self) -> Iterator[bool]:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(os.path.join(self.basepath, "guard"), flags, 0o600)
        except FileNotFoundError:
            yield False  # the folder is gone, and with it every file
            return
        try:
            deadline = Deadline(GUARD_TIMEOUT_S)
            while not (guarded := _flock(fd, fcntl.LOCK_EX)) and not deadline.expired:
                time.sleep(0.001)
            yield guarded
        finally:
            os.close(fd)

    def _make_folder(self) -> None:
        os.makedirs(self.basepath, mode=0o700, exist_ok=True)
        if not is_closed(os.stat(self.basepath), readable=True):
            raise LockError(
                f"others than this user can write to the folder for locks, {self.basepath}",
                hint="give ZfastLocks a folder of this user's own, with mode 0700",
            )

    def _sweep(self) -> None:
        """Remove the files of holders that died."""
        now = time.monotonic()
        if now < _next_sweeps.get(self.basepath, 0.0):
            return
        _next_sweeps[self.basepath] = now + SWEEP_INTERVAL_S
        for name in os.listdir(self.basepath):
            path = os.path.join(self.basepath, name)
            if not name.endswith(_SUFFIX) or path in _held:
                continue
            with suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if _lock(fd):
                        self._remove(path, fd)
                finally:
                    os.close(fd)


def _lock(fd: int) -> bool:
    while not _flock(fd, fcntl.LOCK_EX):
        if not _flock(fd, fcntl.LOCK_SH):
            return False
        # Only somebody who was looking stood in the way.
        fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


@contextmanager
def _failures(path: str) -> Iterator[None]:
    try:
        yield
    except (LockError, StoreError):
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise LockError(
                f"the file system of {path} has no locks",
                hint="give ZfastLocks a folder on a local disk, or on NFS mounted with locks",
            ) from error
        raise StoreError(
            f"cannot use the lock {path}: {error.strerror}",
            errno=error.errno,
            hint="give ZfastLocks another folder, or set $ZFAST_LOCKS_PATH",
        ) from error
