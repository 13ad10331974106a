"""Every file below a folder; what cannot be looked at is told, and not taken for missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from zfast.errors import StoreError
from zfast.store.files import failure

#: Called with the key and the error of what cannot be looked at.
OnUnread = Callable[[str, StoreError], None]

#: At the root of a file system, and closed to others than root.
_SYSTEMS = "lost+found"
#: Removed since, with all that was in it.
_GONE = (errno.ENOENT, errno.ENOTDIR)


def fail(_: str, error: StoreError) -> None:
    """End the walk at what cannot be looked at."""
    raise error


def pass_over(_: str, error: StoreError) -> None:
    """Leave out what cannot be looked at."""


def files_below(
    base: str, *, without: str, on_unread: OnUnread = fail
) -> Iterator[tuple[str, os.stat_result]]:
    """Each file's key, which is its path from the base, and its status, folder by folder.

    Args:
        base: The folder. It has no files if it is not there.
        without: A folder in it that is left out, as is ``lost+found``.
        on_unread: What to do about a folder or a file that cannot be looked at.

    Raises:
        StoreError: The base cannot be listed; or what `on_unread` raises.
    """

    def tell(error: OSError) -> None:
        if error.errno in _GONE:
            return
        path = os.fspath(error.filename or base)
        failed = failure("cannot look at", path, error)
        if path == base:
            raise failed
        on_unread(os.path.relpath(path, base), failed)

    for folder, folders, files in os.walk(base, onerror=tell):
        if folder == base:
            folders[:] = [name for name in folders if name not in (without, _SYSTEMS)]
        folders.sort()
        for file in sorted(files):
            path = os.path.join(folder, file)
            try:
                status = os.lstat(path)
            except OSError as error:
                tell(error)
            else:
                yield os.path.relpath(path, base), status
