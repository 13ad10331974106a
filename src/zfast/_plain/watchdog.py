"""Ends this process when its parent is dead; see ``_watchdog``.

A process of its own watches, since a thread of Python's could not run while a computation holds the
GIL.
"""

from __future__ import annotations

import os
import subprocess
import sys

_WATCH = """
import os, shutil, signal, sys, time
import psutil
watched, parent, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
process = psutil.Process(watched)
while os.getppid() == watched:
    if process.ppid() != parent:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        os.kill(watched, signal.SIGKILL)
        break
    time.sleep(0.1)
"""


def watch_parent(parent_pid: int, folder: str = "") -> None:
    """End this process when ``parent_pid``, its parent, ends, and remove ``folder``."""
    command = [sys.executable, "-I", "-c", _WATCH, str(os.getpid()), str(parent_pid), folder]
    watcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    watcher.returncode = 0  # it outlives its handle, and nobody waits for it
