"""Whose turn it is to use a link's socket; there is no quick way, so the link's own is taken."""

from __future__ import annotations

import threading
import time

NOTHING = object()


class Turn:
    """A link's socket, for one thread at a time; see ``_core.Turn``."""

    def __init__(self) -> None:
        self._socket = threading.Lock()
        self._state = threading.Lock()
        self._in_use = False
        self._fresh_until = 0.0

    def enter(self) -> bool:
        """False if another thread is in a call; waits for a background thread."""
        with self._state:
            if self._in_use:
                return False
            self._in_use = True
        self._socket.acquire()
        return True

    def leave(self) -> None:
        """End the call."""
        self._in_use = False
        self._socket.release()

    def try_between(self) -> bool:
        """Come between two calls, unless one is under way. Then `end_between`."""
        return self._socket.acquire(blocking=False)

    def end_between(self) -> None:
        """Let the next call begin."""
        self._socket.release()

    @property
    def fresh(self) -> bool:
        """What was last seen of the peers is good enough to send something."""
        return time.monotonic() < self._fresh_until

    def stay_fresh(self, seconds: float) -> None:
        """The peers were seen just now."""
        self._fresh_until = time.monotonic() + seconds


class Lane:
    """No quick way: every call says that it did nothing. See ``_core.Lane``."""

    def __init__(self, *_: object, **__: object) -> None:
        self.reminded = False

    def send(self, value: object, timeout: float | None) -> bool:
        """Nothing was sent."""
        return False

    def recv(self, timeout: float | None, copy: bool = False) -> object:
        """Nothing was received."""
        return NOTHING

    def recv_batch(self, timeout: float | None) -> None:
        """Nothing was received."""
