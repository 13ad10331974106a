"""Private folders that are locked by the process that made them, and swept when it has died.

An owner holds a lock on a file in its folder, which the kernel drops however the owner ends.
Whoever comes next removes what dead owners left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from zfast.errors import ConfigError

_LOCK_NAME = "owner.lock"
#: Below this a folder is being made, without a lock yet; nobody else looks at it, but for sweeping
#: what has been made for so long: its owner died of it.
_NEW = "new-"
_NEW_S = 3600.0


class OwnedFolder:
    """A 0700 folder of this process, ``NAME-PID-RANDOM``.

    Raises:
        ConfigError: It cannot be made; the message says where and why.
    """

    def __init__(self, parent: Path, name: str) -> None:
        new_prefix = f"{name}-{_NEW}"
        try:
            new = Path(tempfile.mkdtemp(prefix=new_prefix, dir=parent))
            self._lock_fd = os.open(new / _LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # With its lock held it is given its name: nobody takes it for a dead one's.
            self.path = parent / f"{name}-{os.getpid()}-{new.name.removeprefix(new_prefix)}"
            new.rename(self.path)
        except OSError as error:
            raise ConfigError(
                f"cannot make a folder for sockets in {parent}: {error.strerror}",
                hint="set XDG_RUNTIME_DIR or TMPDIR to a folder of yours that can be written",
            ) from error

    def remove(self) -> None:
        """Remove it and give up the lock. A second call does nothing."""
        if self._lock_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            self.abandon()

    def abandon(self) -> None:
        """Give up the lock only: for a forked child, whose parent owns the folder."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def owned_folders(parent: Path, name: str) -> list[Path]:
    """This user's folders of one name, of living and dead owners."""
    return sorted(filter(_is_ours, parent.glob(f"{name}-[0-9]*-*")))


def is_owned(folder: Path) -> bool:
    """Whether the owner of a folder lives."""
    try:
        lock_fd = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A shared lock, so that two who look at the same time do not see each other.
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock_fd)
    return False


def sweep(parent: Path, name: str) -> None:
    """Remove what dead owners left."""
    for folder in owned_folders(parent, name):
        # Without its file nobody can say: who cleans temporary files may take it from a living one.
        if (folder / _LOCK_NAME).exists() and not is_owned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in filter(_is_ours, parent.glob(f"{name}-{_NEW}*")):
        with contextlib.suppress(OSError):  # it may have got its name meanwhile
            if time.time() - folder.stat().st_mtime > _NEW_S:
                shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    try:
        info = folder.lstat()
    except OSError:
        return False
    return info.st_uid == os.geteuid() and stat.S_ISDIR(info.st_mode)
