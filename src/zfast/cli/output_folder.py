"""Folders that long verbs write into: tried before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from zfast.errors import ConfigError


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there, and try whether files can be made in it.

    Raises:
        ConfigError: It cannot be made, or they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write into {folder}: {error.strerror}",
            hint="give another folder with --output",
        ) from error
