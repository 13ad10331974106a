"""A process that does with locks what it is told, one line of JSON each: ``[METHOD, ARGS...]``.

Run: ``lock_process.py FOLDER``. ``["fork"]`` leaves a child that waits until its stdin is closed;
``["count", PATH, KEY, TIMES]`` counts up a number in a file, each step under the lock.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from zfast.prefect.locking import ZfastLocks

locks = ZfastLocks(sys.argv[1])


def fork() -> int:
    """The child's pid, once it is a process of its own: it has let go of our locks."""
    forked, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(1)
        os.write(tell, b"\0")
        sys.stdin.readline()
        os._exit(0)
    os.close(tell)
    os.read(forked, 1)
    os.close(forked)
    return child


def count(path: str, key: str, times: int) -> None:
    file = Path(path)
    for _ in range(times):
        assert locks.acquire_lock(key, f"process {os.getpid()}")
        number = int(file.read_text())
        file.write_text(str(number + 1))
        locks.release_lock(key, f"process {os.getpid()}")


def main() -> None:
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        method, *args = json.loads(line)
        call: Any = {"fork": fork, "count": count}.get(method) or getattr(locks, method)
        print(json.dumps(call(*args)), flush=True)


if __name__ == "__main__":
    main()
