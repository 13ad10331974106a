"""Signs of life of a local worker, and how much memory it has.

A worker lives if its interpreter lets the I/O thread run, which writes on the slate, or if it
computes: one long call into C that never lets another thread run uses the processor. What waits
for a disk cannot be killed, and is not judged. So what is left is a process that is stopped, or
whose interpreter waits for something that does not come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil

#: A lease is this many looks without a sign of life. Looks are counted, not seconds: a hub that
#: was itself stopped must not find that all of its workers are overdue.
LOOKS_PER_LEASE = 8


def private_nbytes(memory: Any) -> int:
    """Of psutil's ``memory_info``: without what is shared with others, where that is known."""
    return int(memory.rss - getattr(memory, "shared", 0))


class Vitals:
    """Looks after one worker process. Threads: the hub's only.

    Args:
        pid: A child that is not reaped as long as it is looked at.
        read_beats: Counts the signs of life of its interpreter.

    Attributes:
        is_stopped: At the last look it was stopped by a signal.
        private_nbytes: Its memory at the last look, without what it shares with others.
    """

    def __init__(self, pid: int, read_beats: Callable[[], int]) -> None:
        self._process: psutil.Process | None
        try:
            self._process = psutil.Process(pid)
        except (psutil.Error, OSError):
            self._process = None
        self._read_beats = read_beats
        self._last_sign: tuple[int, float] = (-1, -1.0)
        self._silent_looks = 0
        self.is_stopped = False
        self.private_nbytes = 0

    def look(self) -> None:
        """Take a look; to be called ``LOOKS_PER_LEASE`` times a lease."""
        try:
            if self._process is None:
                return
            with self._process.oneshot():
                status = self._process.status()
                times = self._process.cpu_times()
                memory = self._process.memory_info()
        # Dead: its pidfd says so. Or this process has too many open files for the moment.
        except (psutil.Error, OSError):
            return
        self.private_nbytes = private_nbytes(memory)
        self.is_stopped = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        sign = self._read_beats(), times.user + times.system
        if sign != self._last_sign or status == psutil.STATUS_DISK_SLEEP:
            self._silent_looks = 0
        else:
            self._silent_looks += 1
        self._last_sign = sign

    @property
    def is_overdue(self) -> bool:
        """It has shown no sign of life for a whole lease."""
        return self._silent_looks >= LOOKS_PER_LEASE
