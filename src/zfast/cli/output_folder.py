"""Folders that long verbs write into: tried before the work, not after it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from zfast.errors import ConfigError


def _named(_: object, tokens: Sequence[Token]) -> Path:
    """A path as it stands there; to ``Path`` an empty one is the working folder."""
    if not tokens[0].value:
        raise ValueError("it is empty")
    return Path(tokens[0].value)


OutputFolder = Annotated[Path, Parameter(converter=_named)]


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
