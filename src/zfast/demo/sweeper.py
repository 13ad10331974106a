"""Ends the demo's processes and removes its folder when the demo is gone, however it ended.

A process of its own, which outlives ``kill -9`` of the demo. It reads lines from the demo's end of
a pipe, ``+1234`` for a process group that was started and ``-1234`` for one that is over; when the
pipe closes it sweeps. Run as a file, by Python's standard library alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

_FOLDER_TIMEOUT_S = 10


def main(folder: str) -> None:
    """Wait for the demo to end, then sweep."""
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    # A dying process may yet write to the folder.
    deadline = time.monotonic() + _FOLDER_TIMEOUT_S
    while os.path.exists(folder) and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1])
