"""Whole numbers on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token
from cyclopts.validators import Number


def _whole(_: object, tokens: Sequence[Token]) -> int:
    """A number as it stands there: cyclopts would round one that is not whole."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


#: How many; one at least.
Count = Annotated[int, Parameter(converter=_whole, validator=Number(gte=1))]
#: Of a page; 0 lets the system choose.
Port = Annotated[int, Parameter(converter=_whole, validator=Number(gte=0, lte=65535))]
