"""The folder of a user on a host in which publishers and subscribers find each other.

::

    $XDG_RUNTIME_DIR/zfast-events-UID/      0700, checked
        p-PID-RANDOM/                       a publisher: control.sock, events.sock, owner.lock
        s-PID-RANDOM/                       a subscriber: arrivals.sock, owner.lock

An owner holds a lock on its ``owner.lock``, which the kernel drops however it ends; whoever comes
next removes what dead owners left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from zfast.addresses import runtime_root
from zfast.errors import ConfigError
from zfast.security.private_files import is_closed

PUBLISHER = "p"
SUBSCRIBER = "s"
_LOCK_NAME = "owner.lock"
#: Below this name a folder is being made; nobody else looks at it.
_NEW = "new-"


class OwnedFolder:
    """A folder of this process in the folder of this user.

    Args:
        role: ``p`` or ``s``.
        parent: Instead of the user's own; for tests and for hosts with another place for it.

    Raises:
        ConfigError: It cannot be made, or the user's folder is open to others.
    """

    def __init__(self, role: str, parent: Path | None = None) -> None:
        parent = parent or user_folder()
        name = f"{role}-{os.getpid()}-"
        try:
            new = Path(tempfile.mkdtemp(prefix=_NEW, dir=parent))
            self._lock_fd = os.open(new / _LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # With its lock held it is given its name: nobody takes it for a dead one's.
            self.path = parent / (name + new.name.removeprefix(_NEW))
            new.rename(self.path)
        except OSError as error:
            raise ConfigError(
                f"cannot make a folder for the events' sockets in {parent}: {error.strerror}",
                hint="set XDG_RUNTIME_DIR or TMPDIR to a folder of yours that can be written",
            ) from error
        sweep(parent)

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


def user_folder() -> Path:
    """This user's folder, made if it is not there.

    Raises:
        ConfigError: It cannot be made, or it belongs to another user, or is open to others.
    """
    folder = runtime_root() / f"zfast-events-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        info = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"cannot make {folder}: {error.strerror}",
            hint="set XDG_RUNTIME_DIR or TMPDIR to a folder of yours that can be written",
        ) from error
    if not stat.S_ISDIR(info.st_mode) or not is_closed(info, readable=False):
        raise ConfigError(
            f"{folder} is not a folder of yours alone, so who listens there is not known",
            hint="remove it, or set XDG_RUNTIME_DIR to a folder of yours",
        )
    return folder


def owned_folders(role: str, parent: Path) -> list[Path]:
    """The folders of one role, of living and dead owners."""
    return sorted(parent.glob(f"{role}-[0-9]*-*"))


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


def sweep(parent: Path) -> None:
    """Remove what dead owners left."""
    for role in (PUBLISHER, SUBSCRIBER):
        for folder in owned_folders(role, parent):
            if not is_owned(folder):
                shutil.rmtree(folder, ignore_errors=True)
