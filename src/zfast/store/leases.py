"""Which objects live processes use: what they hold is never collected.

Each process that reads or writes a store keeps one file ``.zfast/leases/<random>`` open and
locked, and notes in it each key that it has put, found or got, once, ended by a NUL. The kernel
unlocks the file when the process and every child that it forked are gone; then what the file says
no longer counts. Who removes objects takes the gate first, so that nothing is noted meanwhile.

What is held is held in a scope, such as a flow run: a State may name the result of any task of its
run. It is held until the scope is let go of; without a scope, until the process ends. A lease's
file only grows: who lets go begins a new one, and the old one counts as long as a child that was
forked meanwhile has it open.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from zfast.errors import StoreError
from zfast.store.files import create_locked, remove_unlocked

logger = logging.getLogger("zfast.store")

LEASES_FOLDER = "leases"
GATE = "gate"
#: A collector passes the gate within milliseconds. One that is stopped there holds up nobody.
GATE_WAIT_S = 2.0
_GATE_POLL_S = 0.0005

#: For whom this context's objects are held; None: for the process.
scope: ContextVar[Hashable] = ContextVar("zfast_lease_scope", default=None)


class Leases:
    """The leases in one store, and this process's own. Any thread may call; `of` gives it."""

    def __init__(self, zfast_folder: str) -> None:
        self._folder = os.path.join(zfast_folder, LEASES_FOLDER)
        self._zfast_folder = zfast_folder
        self._held: defaultdict[Hashable, set[str]] = defaultdict(set)
        self._noted: set[str] = set()
        self._unnoted: set[str] = set()  # held, but the disk was full
        self._ended: deque[Hashable] = deque()
        self._fd = -1
        self._path = ""
        self._gate_fd = -1
        self._lock = threading.Lock()
        self._has_warned = False

    def hold(self, key: str) -> None:
        """Hold an object in the present `scope`, whether it is there yet or not.

        Where this process may not write, or the file system has no locks, it holds nothing; then
        the collector cannot work there either, or is run by somebody who knows. On a full disk
        what was held before stays held, and a warning says that other processes may remove what
        came since; it is noted as soon as there is space.
        """
        with self._lock, suppress(OSError):
            if not self._is_open():
                self._close()
                self._open()
            self._held[scope.get()].add(key)
            if key not in self._noted:
                self._unnoted.add(key)
                try:
                    self._note(self._unnoted)  # with it what could not be noted before
                except OSError as error:
                    self._warn(error)
                    raise
        self._end_scopes()

    def let_go(self) -> None:
        """Hold nothing any more, as if this process had ended."""
        with self._lock:
            self._held.clear()
            self._begin_anew()

    def end_scope(self, ended: Hashable) -> None:
        """Hold nothing any more in a scope; what another one holds too stays held.

        It never waits for a lock, so a finaliser may call it, in the middle of anything.
        """
        self._ended.append(ended)
        self._end_scopes()

    def _end_scopes(self) -> None:
        # Who has the lock now looks again when it is free.
        while self._ended and self._lock.acquire(blocking=False):
            try:
                if not self._ended:
                    continue
                ended = self._ended.popleft()  # nobody else takes from it without the lock
                if ended in self._held:
                    del self._held[ended]
                    self._begin_anew()
            finally:
                self._lock.release()

    def _begin_anew(self) -> None:
        """Change to a file that has only what is still held."""
        rest: set[str] = set().union(*self._held.values())
        self._unnoted = rest - self._noted
        old = self._fd, self._path, self._noted
        if rest == self._noted or self._fd < 0:
            return
        self._fd, self._noted = -1, set()
        try:
            if rest and os.fstat(old[0]).st_nlink:
                self._fd, self._path = create_locked(self._folder)
                self._note(rest)
        except OSError:
            # The disk is full, or the folder gone. Better too much is held than too little.
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._path, self._noted = old
            return
        os.close(old[0])
        remove_unlocked(old[1])

    @contextmanager
    def held(self) -> Iterator[set[str]]:
        """Every key that a live process holds. In the block, nobody comes to hold another.

        Raises:
            StoreError: The gate cannot be had or a lease not read, so that nobody can say what is
                held.
        """
        with self._lock:
            try:
                if self._gate_fd < 0 or not os.fstat(self._gate_fd).st_nlink:
                    self._open()
                passed = self._pass_gate(fcntl.LOCK_EX, 10 * GATE_WAIT_S)
            except OSError as error:
                raise self._cannot_see(error) from error
            if not passed:
                raise StoreError(
                    f"another process does not let go of {self._folder}/{GATE}",
                    hint="look for a `zfast store gc` that was stopped, and end it",
                )
            try:
                try:
                    keys = self._read_all()
                except OSError as error:
                    raise self._cannot_see(error) from error
                yield keys
            finally:
                fcntl.lockf(self._gate_fd, fcntl.LOCK_UN)
        self._end_scopes()

    def sweep(self, *, dry_run: bool = False) -> int:
        """Remove the leases of processes that are gone; how many."""
        try:
            paths = self._paths()
        except OSError:
            return 0
        return sum(remove_unlocked(path, dry_run=dry_run) for path in paths)

    def _read_all(self) -> set[str]:
        keys = set().union(*self._held.values())
        for path in self._paths():
            if remove_unlocked(path):
                continue
            with suppress(FileNotFoundError), open(path, "rb") as file:
                # A last one without its NUL was cut off by the death of its writer; a full disk
                # may have cut others, which are nobody's.
                keys.update(map(os.fsdecode, file.read().split(b"\0")[:-1]))
        keys.discard("")
        return keys

    def _paths(self) -> list[str]:
        return [
            os.path.join(self._folder, name) for name in os.listdir(self._folder) if name != GATE
        ]

    def _cannot_see(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot see which objects of {self._zfast_folder} are in use: {error.strerror}",
            errno=error.errno,
            hint="the folder and what is in it must be readable and writable, and its file system "
            "must support locks (on NFS: mount it without `nolock`)",
        )

    def _is_open(self) -> bool:
        # The folder of a store may be removed, and made anew, while we live.
        return self._fd >= 0 and bool(os.fstat(self._fd).st_nlink)

    def _open(self) -> None:
        for folder in (self._zfast_folder, self._folder):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        if self._gate_fd < 0 or not os.fstat(self._gate_fd).st_nlink:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            gate = os.open(os.path.join(self._folder, GATE), flags, 0o600)
            self._close()
            self._gate_fd = gate
        if self._fd < 0:
            self._fd, self._path = create_locked(self._folder)

    def _note(self, keys: Iterable[str]) -> None:
        # The first NUL ends what a full disk has cut off.
        note = b"\0" + b"".join(os.fsencode(key) + b"\0" for key in keys)
        passed = self._pass_gate(fcntl.LOCK_SH, GATE_WAIT_S)
        try:
            while note:
                note = note[os.write(self._fd, note) :]
            os.close(os.dup(self._fd))  # a network file system sends it to the others now
        finally:
            if passed:
                fcntl.lockf(self._gate_fd, fcntl.LOCK_UN)
        self._noted.update(keys)
        self._unnoted.clear()  # callers give all of these

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "cannot note in %s what this process uses (%s): another process that removes "
                "results may remove it",
                self._folder,
                error.strerror,
            )

    def _close(self) -> None:
        self._held.clear()
        self._noted.clear()
        self._unnoted.clear()
        for fd in (self._fd, self._gate_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._gate_fd = -1

    def _pass_gate(self, how: int, wait_s: float) -> bool:
        # Of the process, not of the descriptor: a forked child neither inherits nor frees it.
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.lockf(self._gate_fd, how | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    return False
            time.sleep(_GATE_POLL_S)

    def _after_fork(self) -> None:
        # What the parent holds stays held for the child, by the descriptor that is left open here.
        # What the child uses it notes in a file of its own, so that neither lets go for the other.
        self._lock = threading.Lock()
        self._fd = -1
        self._held.clear()
        self._noted.clear()
        self._unnoted.clear()


_all: dict[str, Leases] = {}


def of(zfast_folder: str) -> Leases:
    """The leases of the store with this ``.zfast`` folder: one object a process."""
    # One step under the GIL, so there is no lock for a fork to inherit.
    return _all.get(zfast_folder) or _all.setdefault(zfast_folder, Leases(zfast_folder))


def _after_fork() -> None:
    for leases in _all.values():
        leases._after_fork()


os.register_at_fork(after_in_child=_after_fork)
