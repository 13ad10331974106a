"""Whether Prefect is as it was when this package was written."""

from __future__ import annotations

import inspect
from typing import Any, cast

import prefect

KNOWN_VERSION = "3.8."


def is_known() -> bool:
    """Say whether this Prefect is one whose insides this package was written for."""
    return prefect.__version__.startswith(KNOWN_VERSION)


def takes(function: object, *names: str) -> bool:
    """Whether a function has exactly these parameters, in this order."""
    try:
        return tuple(inspect.signature(cast("Any", function)).parameters) == names
    except (TypeError, ValueError):
        return False
