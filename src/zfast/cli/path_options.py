"""Paths on the command line: an empty one, as of a variable that is not set, is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import Token


def to_path(_: object, tokens: Sequence[Token]) -> Path | None:
    """What was given; None for an environment variable that is empty, which is as if unset.

    ``Path("")`` would be the current folder.

    Raises:
        ValueError: It is empty.
    """
    token = tokens[0]
    if token.value:
        return Path(token.value)
    if token.source == "env":
        return None
    raise ValueError("a path may not be empty")


#: A path on the command line.
GivenPath = Annotated[Path, Parameter(converter=to_path)]
