"""ZfastLocks: a lock manager for transactions with isolation SERIALIZABLE."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

from prefect.locking.protocol import LockManager
from prefect.settings import PREFECT_HOME

from zfast.deadline import Deadline
from zfast.prefect.lock_files import LockFolder

PATH_VARIABLE = "ZFAST_LOCKS_PATH"
#: Who waits looks again after so long, at first and at last.
POLL_MIN_S, POLL_MAX_S = 0.001, 0.025


class ZfastLocks(LockManager):
    """Locks between the processes of one host, or of hosts that mount a folder with locks.

    A lock ends when it is released, when its process ends (at once, also by ``kill -9``), or after
    ``hold_timeout``; who acquires it again renews that. Waiters do not queue: who looks first when
    it is free has it. It pickles to its path. Any thread may call.

    On NFS these are the server's locks (v4, or v3 with lockd). Those of a host that died last until
    the server gives the host up, by default 90 s with v4. A mount with ``nolock`` or
    ``local_lock=flock`` has locks of its own host only.

    Args:
        basepath: The folder; made with mode 0700. Default: $ZFAST_LOCKS_PATH, or ``zfast-locks`` in
            Prefect's home.

    Example:
        ```python
        policy = INPUTS.configure(
            isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=ZfastLocks()
        )

        @task(cache_policy=policy, persist_result=True)
        def load() -> pd.DataFrame: ...
        ```
    """

    def __init__(self, basepath: str | os.PathLike[str] | None = None) -> None:
        """Take a folder; nothing is made yet."""
        if basepath is None:
            home = Path(PREFECT_HOME.value())
            basepath = os.environ.get(PATH_VARIABLE) or home / "zfast-locks"
        # Absolute from the start: other processes have other working folders.
        self.basepath = os.path.realpath(os.path.expanduser(basepath))
        self._folder = LockFolder(self.basepath)

    def __repr__(self) -> str:
        return f"ZfastLocks({self.basepath!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZfastLocks) and other.basepath == self.basepath

    def __hash__(self) -> int:
        return hash(self.basepath)

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Take a lock, or renew its lease.

        Args:
            key: What is locked.
            holder: Who holds it. Whoever names the same holder holds the same lock.
            acquire_timeout: Seconds to wait, 0 for none; None waits as long as it takes.
            hold_timeout: Seconds after which others may take it from this holder, however alive.

        Returns:
            Whether the holder has it.

        Raises:
            LockError: The folder is not this user's alone, or its file system has no locks.
            StoreError: The folder cannot be written.
        """
        for pause_s in _pauses(acquire_timeout):
            if self._folder.try_acquire(key, holder, hold_timeout):
                return True
            time.sleep(pause_s)
        return self._folder.try_acquire(key, holder, hold_timeout)

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Do what `acquire_lock` does; the loop goes on while it waits."""
        for pause_s in _pauses(acquire_timeout):
            if self._folder.try_acquire(key, holder, hold_timeout):
                return True
            await asyncio.sleep(pause_s)
        return self._folder.try_acquire(key, holder, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        """Let go of a lock.

        Raises:
            LockError: The holder does not hold it, or not any more; or another process does.
        """
        self._folder.release(key, holder)

    def is_locked(self, key: str) -> bool:
        """Say whether anybody holds a lock."""
        return self._folder.look(key) is not None

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Say whether this holder holds a lock."""
        record = self._folder.look(key)
        return record is not None and record.holder == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds a lock.

        Args:
            key: What is locked.
            timeout: Seconds to wait, 0 for none; None waits as long as it takes.

        Returns:
            Whether it is free.
        """
        for pause_s in _pauses(timeout):
            if not self.is_locked(key):
                return True
            time.sleep(pause_s)
        return not self.is_locked(key)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Do what `wait_for_lock` does; the loop goes on while it waits."""
        for pause_s in _pauses(timeout):
            if not self.is_locked(key):
                return True
            await asyncio.sleep(pause_s)
        return not self.is_locked(key)


def _pauses(timeout: float | None) -> Iterator[float]:
    """Give the pauses between looks, in seconds, until the time is up."""
    deadline = Deadline(timeout)
    pause_s = POLL_MIN_S
    while not deadline.expired:
        yield deadline.left(at_most=pause_s) or 0.0
        pause_s = min(pause_s * 1.5, POLL_MAX_S)
