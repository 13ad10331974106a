"""The folder of a user on a host in which publishers and subscribers find each other.

::

    $XDG_RUNTIME_DIR/zfast-events-UID/      0700, checked
        p-PID-RANDOM/                       a publisher: control.sock, events.sock, owner.lock
        s-PID-RANDOM/                       a subscriber: arrivals.sock, owner.lock
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from zfast.addresses import runtime_root
from zfast.errors import ConfigError
from zfast.owned_folder import OwnedFolder, sweep
from zfast.security.private_files import is_closed

PUBLISHER = "p"
SUBSCRIBER = "s"


def own_folder(role: str, parent: Path) -> OwnedFolder:
    """A folder of this process in the folder of this user; what dead ones left is removed.

    Args:
        role: ``PUBLISHER`` or ``SUBSCRIBER``.
        parent: See ``user_folder``; another one for tests, and for hosts with another place for it.

    Raises:
        ConfigError: It cannot be made.
    """
    folder = OwnedFolder(parent, role)
    for each in (PUBLISHER, SUBSCRIBER):
        sweep(parent, each)
    return folder


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
