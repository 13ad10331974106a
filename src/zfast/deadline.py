"""Deadline: one time-out across several waits."""

from __future__ import annotations

import time

from zfast.errors import ConfigError


class Deadline:
    """A point in time, from a time-out in seconds; None is never."""

    __slots__ = ("_at", "timeout")

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise ConfigError(f"a timeout is a number of seconds from 0 on, or None: {timeout!r}")
        self.timeout = timeout
        self._at = None if timeout is None else time.monotonic() + timeout

    def left(self, at_most: float | None = None) -> float | None:
        """Seconds left, at least 0 and at most ``at_most``; None for ever."""
        if self._at is None:
            return at_most
        left = max(0.0, self._at - time.monotonic())
        return left if at_most is None else min(left, at_most)

    @property
    def expired(self) -> bool:
        """True once the time is up."""
        return self._at is not None and time.monotonic() >= self._at
