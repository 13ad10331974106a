"""Which part of a value could not be encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from types import FunctionType

_MAX_DEPTH = 8
#: Each part is encoded on trial, so a look into a wide value must end.
_MAX_PARTS = 256


def type_name(value: object) -> str:
    """The name of a value's type, with its module unless that is ``builtins``."""
    cls = type(value)
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def describe_failure(
    value: object, error: Exception, fails: Callable[[object], bool]
) -> tuple[str, str]:
    """Say what in ``value`` cannot be encoded.

    Args:
        value: The whole value.
        error: What encoding it raised.
        fails: Whether a part of the value, by itself, cannot be encoded.

    Returns:
        A message and a hint.
    """
    if isinstance(error.__cause__ or error, RecursionError):
        return f"cannot encode a value of type {type_name(value)}: it is nested too deeply", (
            "flatten it, or raise sys.setrecursionlimit"
        )
    path, part = "", value
    with suppress(Exception):  # a part that cannot be looked at ends the search
        for _ in range(_MAX_DEPTH):
            parts = islice(_parts(part), _MAX_PARTS)
            found = next((item for item in parts if fails(item[1])), None)
            if found is None:
                break
            path += found[0]
            part = found[1]
    reason = str(error) or type_name(error)
    message = f"cannot encode a value of type {type_name(value)}: {reason}"
    if path:
        message += f", at value{path} of type {type_name(part)}"
    return message, (
        "leave it out and make it where it is used, or give its class a __reduce__ method"
    )


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r:.60}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "{…}", item
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield f" closing over {name}", cell.cell_contents
    elif not isinstance(value, type):
        for name, item in getattr(value, "__dict__", {}).items():
            yield f".{name}", item
