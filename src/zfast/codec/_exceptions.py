"""Exceptions that arrive as they were raised.

Pickle calls the class with ``args`` again: a subclass whose ``__init__`` takes something else
fails at the receiver, or wraps its message twice. Pickle also drops the cause and the traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import MethodDescriptorType
from typing import Any

Reduction = tuple[Any, ...]

_HEAP_TYPE = 1 << 9


def exception_reducer(cls: type) -> Callable[[Any], Any] | None:
    """Choose how exceptions of ``cls`` are reduced; None if ``cls`` is no exception."""
    return _reduce_exception if issubclass(cls, BaseException) else None


def _reduce_exception(error: BaseException) -> Any:
    reduced = error.__reduce_ex__(5)
    if not isinstance(reduced, tuple):
        return reduced
    rebuild, args, state = (*reduced, None)[:3]
    if any(part is not None for part in reduced[3:]):
        return reduced
    if rebuild is type(error) and isinstance(rebuild.__reduce__, MethodDescriptorType):
        rebuild, args = restore_exception, (rebuild, args)
    text = None
    if error.__traceback__ is not None:
        text = "".join(traceback.format_tb(error.__traceback__))
    links = (error.__cause__, error.__suppress_context__, text)
    return rebuild, args, (state, *links), None, None, restore_exception_state


def restore_exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception without calling an ``__init__`` that was written in Python."""
    # The nearest base made in C knows the slots (errno, encoding …) that args stand for.
    base = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    error: BaseException = base.__new__(cls, *args)
    base.__init__(error, *args)  # type: ignore[misc]
    return error


def restore_exception_state(error: BaseException, state: tuple[Any, ...]) -> None:
    """Set attributes, notes and cause, and the sender's traceback as ``remote_traceback``."""
    own, cause, suppress_context, text = state
    if own is not None:
        error.__setstate__(own)
    error.__cause__ = cause
    error.__suppress_context__ = suppress_context
    if text is not None:
        earlier = error.__dict__.get("remote_traceback", "")
        error.__dict__["remote_traceback"] = earlier + text
