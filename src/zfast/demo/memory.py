"""Peak memory of a process and all its children."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from typing_extensions import Self

_INTERVAL_S = 0.05


class PeakMemory:
    """Samples the memory of a process tree from a thread, while the context is open.

    Attributes:
        kind: ``PSS`` where the system counts proportional set sizes, so that pages which several
            processes share count once; else ``RSS``, which counts them in each.
        nbytes: The peak so far.
    """

    def __init__(self, pid: int) -> None:
        self.kind = "PSS" if Path("/proc/self/smaps_rollup").exists() else "RSS"
        self.nbytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                root = psutil.Process(self._pid)
                tree = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            self.nbytes = max(self.nbytes, sum(self._process_nbytes(item) for item in tree))

    def _process_nbytes(self, process: psutil.Process) -> int:
        try:
            if self.kind == "RSS":
                return int(process.memory_info().rss)
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (OSError, psutil.Error):
            # It ended between being listed and being read.
            return 0
        line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        return int(line.split()[1]) * 1024
