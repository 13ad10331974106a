"""The private folder of one hub: its socket, and the lock that says its owner lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from zfast.errors import ConfigError

_PREFIX = "zfast-"
_LOCK_NAME = "owner.lock"
_SOCKET_NAME = "hub.sock"


class RuntimeFolder:
    """A 0700 folder below ``$XDG_RUNTIME_DIR`` or the system's temporary folder.

    Its owner holds a lock on a file in it, which the kernel drops however the owner ends. Folders
    of dead owners are removed by the next one to be made; workers remove their driver's at once.

    Raises:
        ConfigError: No folder can be made; the message says where and why.
    """

    def __init__(self) -> None:
        root = _root()
        _sweep(root)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))
            self._lock_fd = os.open(self.path / _LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"cannot make a folder for sockets in {root}: {error.strerror}",
                hint="set XDG_RUNTIME_DIR or TMPDIR to a folder of yours that can be written",
            ) from error

    @property
    def endpoint(self) -> str:
        """The hub's endpoint in this folder."""
        return f"ipc://{self.path}/{_SOCKET_NAME}"

    def remove(self) -> None:
        """Remove the folder and give up the lock. A second call does nothing."""
        if self._lock_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = -1


def hub_sockets() -> list[Path]:
    """The sockets of this user's hubs on this host, the newest last."""
    found: list[tuple[float, Path]] = []
    for folder in _root().glob(f"{_PREFIX}[0-9]*-*"):
        path = folder / _SOCKET_NAME
        try:
            info = path.lstat()
        except OSError:
            continue
        if info.st_uid == os.getuid():
            found.append((info.st_mtime, path))
    return [path for _, path in sorted(found)]


def _root() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def _sweep(root: Path) -> None:
    """Remove the folders whose owner is dead. Errors are left to whoever owns the folder."""
    for folder in root.glob(f"{_PREFIX}[0-9]*-*"):
        try:
            info = folder.lstat()
            if info.st_uid != os.getuid() or not stat.S_ISDIR(info.st_mode):
                continue
            # A folder being made has no lock yet, but its owner runs.
            if _is_alive(int(folder.name.removeprefix(_PREFIX).partition("-")[0])):
                continue
            lock_fd = os.open(folder / _LOCK_NAME, os.O_RDWR)
        except (OSError, ValueError):
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock_fd)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
