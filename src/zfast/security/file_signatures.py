"""What tells that a file or folder has changed, without reading it: times, sizes, modes, owners."""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: So many folders that are still to be looked at: more are no key folder.
_MAX_FOLDERS = 1000


def file_signature(path: Path | str) -> tuple[int, ...]:
    """Differs when a file has changed, or what a link leads to. Never raises.

    Its mode comes first, 0 where there is none. A link to nowhere is looked at itself.
    """
    code = 0
    for follows in (True, False):
        try:
            info = os.stat(path, follow_symlinks=follows)
        except OSError as error:
            code = error.errno or 0
        else:
            return info.st_mode, info.st_mtime_ns, info.st_size, info.st_ino, info.st_uid
    return 0, code


def folder_signature(path: Path) -> tuple[object, ...]:
    """Differs when a folder, or anything in it, has changed. Never raises.

    What cannot be looked at hides nothing beside it.
    """
    found: list[object] = [file_signature(path)]
    folders = [str(path)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    signature = file_signature(entry.path)
                    found.append((entry.path, signature))
                    if stat.S_ISDIR(signature[0]) and len(folders) < _MAX_FOLDERS:
                        folders.append(entry.path)
        except OSError as error:
            found.append((folder, error.errno))
    return tuple(sorted(found, key=repr))
