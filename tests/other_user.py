"""A while as another user: root is refused nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def not_as_root(owned: Path) -> Iterator[None]:
    """For a while as a user who is refused something, to whom a folder belongs.

    The folder is not to be in ``tmp_path``: those above that are for one user alone.
    """
    if os.geteuid() != 0:
        yield
        return
    "".encode("idna")  # imports what binding needs, from where that user may not look
    for path in (owned, *owned.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def closed_to_its_owner(folder: Path, owned: Path) -> Iterator[None]:
    """``not_as_root``, and nobody may look into one of the folders in there."""
    with not_as_root(owned):
        folder.chmod(0)
        try:
            yield
        finally:
            folder.chmod(0o700)
