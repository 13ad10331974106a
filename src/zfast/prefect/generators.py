"""Generator tasks that are submitted: what they yield is their result, as a list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def collect_yielded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns the list of what a generator function yields; any other as it is.

    A generator cannot leave its process, nor can it be stored.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def collect(*arguments: Any, **options: Any) -> list[Any]:
            return list(function(*arguments, **options))

        return collect
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def collect_async(*arguments: Any, **options: Any) -> list[Any]:
            return [value async for value in function(*arguments, **options)]

        return collect_async
    return function
