"""Peak memory of this process, from Linux's own high-water mark."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


class PeakMemory:
    """Counts from the moment it is made. Mapped file pages count too. None where unknown."""

    def __init__(self) -> None:
        """Reset the mark."""
        self._before: int | None = None
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._before = self._read("VmRSS")

    def extra_nbytes(self) -> int | None:
        """How far the peak lies above what was resident at the start."""
        peak = self._read("VmHWM")
        return None if self._before is None or peak is None else max(0, peak - self._before)

    @staticmethod
    def _read(field: str) -> int | None:
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
        return None
