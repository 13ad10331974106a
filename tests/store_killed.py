"""Processes that are killed with -9 between two system calls of what they do to a store.

It is a server: for each line of JSON on its standard input – ``basepath``, ``durability``,
``action`` and ``step`` – it forks a child that does the action and dies before its system call
number ``step``, and answers with the name of that call, or ``null`` if there were fewer.

Python's profile hook is called before each call of a C function, so nothing of the store is
patched, and the kill is a real one. Only writes are cut short, to the few buffers that a kernel
may take at once, so that there are steps in the middle of an object.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import FrameType, TracebackType
from typing import Any

from zfast.codec import Payload
from zfast.store import FolderStore, files
from zfast.store.retention import collect

SYSTEM_MODULES = ("posix", "fcntl", "mmap")
NOT_SYSTEM_CALLS = ("fspath",)
KEY = "a/k"
ACTIONS = ("put", "warm put", "get", "collect", "delete")


class KilledProcesses:
    """The server's client. A context manager."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, basepath: str, durability: str, action: str, step: int) -> str | None:
        """Do something to a store; the call before which its process died, or None."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([basepath, durability, action, step]), file=self._server.stdin, flush=True)
        name: str | None = json.loads(self._server.stdout.readline())
        return name

    def __enter__(self) -> KilledProcesses:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.communicate()
        assert self._server.returncode == 0


def new_payload() -> Payload:
    return Payload(b"new header", [memoryview(bytes([fill]) * 70_000) for fill in range(3)])


def act(basepath: str, durability: Any, action: str, step: int, report: int) -> None:
    """Do it, and die on the way."""
    store = FolderStore(basepath, durability=durability)
    if action == "warm put":  # its lease is open, its folders are known
        store.put("warm", b"")
    left = step

    def die_in_time(_: FrameType, event: str, function: Any) -> None:
        nonlocal left
        if event != "c_call" or function.__module__ not in SYSTEM_MODULES:
            return
        if function.__name__ in NOT_SYSTEM_CALLS:
            return
        if left == 0:
            os.write(report, function.__name__.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    files._IOV_MAX = 3
    sys.setprofile(die_in_time)
    if action == "collect":
        collect(store, budget_nbytes=0)
    elif action == "get":
        store.get(KEY).verify()
    elif action == "delete":
        store.delete(KEY)
    else:
        store.put(KEY, b"new", new_payload())
    sys.setprofile(None)


def main() -> None:
    for line in sys.stdin:
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(readable)
            act(*json.loads(line), writable)
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable) as report:
            name = report.read()
        _, status = os.waitpid(pid, 0)
        assert status == (signal.SIGKILL if name else 0), status
        print(json.dumps(name or None), flush=True)


if __name__ == "__main__":
    main()
