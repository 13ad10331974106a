"""What the file of a lock says."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """What the file of a lock says. Times are those at which its lease ends, or None."""

    key: str = ""
    holder: str = ""
    pid: int = 0
    host: str = ""
    boot: str = ""
    monotonic_s: float | None = None
    wall_s: float | None = None

    def is_over(self) -> bool:
        """Say whether the lease has ended.

        On the host where it was made, by a clock that nobody sets; elsewhere by the wall clock.
        """
        if self.monotonic_s is None or self.wall_s is None:
            return False
        if self.boot == boot_id():
            return time.monotonic() >= self.monotonic_s
        return time.time() >= self.wall_s

    @classmethod
    def of(cls, key: str, holder: str, hold_timeout: float | None) -> Record:
        """Make that of a lock which this process takes now, for so many seconds or for good."""
        monotonic_s = wall_s = None
        if hold_timeout is not None:
            monotonic_s, wall_s = time.monotonic() + hold_timeout, time.time() + hold_timeout
        return cls(key, holder, os.getpid(), platform.node(), boot_id(), monotonic_s, wall_s)

    @classmethod
    def read_from(cls, fd: int) -> Record | None:
        """Read what a file says; None if that is nothing yet."""
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def write_to(self, fd: int) -> None:
        """Write it over what a file says."""
        data = json.dumps(asdict(self)).encode()
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))


@cache
def boot_id() -> str:
    """Tell this run of this host from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
