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
        self._files_before = self._read("RssFile")

    def extra_nbytes(self, *, but_files: bool = False) -> int | None:
        """How far the peak lies above what was resident at the start.

        Args:
            but_files: Leave out the pages of files that are mapped now and were not then.
        """
        peak = self._read("VmHWM")
        if self._before is None or peak is None:
            return None
        files = (self._read("RssFile") or 0) - (self._files_before or 0) if but_files else 0
        return max(0, peak - self._before - files)

    @staticmethod
    def _read(field: str) -> int | None:
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
        return None
