"""Memory that strangers made libzmq take goes back to the system when they have gone."""

from __future__ import annotations

import ctypes
import time

#: How long the memory of strangers stays at most, and how often it is given back: the heap is warm
#: for good reason, and a stranger must not be able to keep it cold.
GIVE_BACK_EVERY_S = 2.0


class HeapKeeper:
    """Gives free heap back a while after it is told to. Threads: one.

    Attributes:
        due_s: When ``give_back`` has something to do, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.due_s = float("inf")
        self._trim = _find_trim()

    def strangers_left(self) -> None:
        """Connections ended that may have made libzmq allocate for nothing."""
        self.due_s = min(self.due_s, time.monotonic() + GIVE_BACK_EVERY_S)

    def give_back(self) -> None:
        """Do it if it is due."""
        if time.monotonic() >= self.due_s:
            self.due_s = float("inf")
            if self._trim is not None:
                self._trim(0)


def _find_trim() -> ctypes._NamedFuncPointer | None:
    """glibc's function; other allocators give memory back by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
    return trim
