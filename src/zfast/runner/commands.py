"""Commands: what other threads ask of the one that owns a socket."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

Command = Callable[[], None]


class CommandQueue:
    """Commands for one thread, run in the order they were put.

    Threads: ``put`` from any, also from the collector in the midst of another ``put`` or of a
    command. The others belong to the thread that owns the queue.
    """

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._receiver, False)
        os.set_blocking(self._sender, False)
        self._lock = threading.RLock()
        self._finished = False
        self._running = False

    @property
    def fd(self) -> int:
        """Readable when there is something to run."""
        return self._receiver

    def put(self, command: Command) -> None:
        """Have a command run; by the caller itself once the queue is finished."""
        self._commands.append(command)
        with self._lock:
            if not self._finished:
                try:
                    os.write(self._sender, b"\0")
                except BlockingIOError:
                    pass  # the pipe is full: its reader is awake anyway
                return
            if self._running:  # by the frames below this one, which find it
                return
            self._run_all()

    def run(self) -> None:
        """Run what was put so far."""
        try:
            os.read(self._receiver, 4096)
        except BlockingIOError:
            pass
        self._run_all()

    def finish(self) -> None:
        """Run what is left; from now on whoever puts a command runs it."""
        with self._lock:  # nobody may write to a descriptor that is somebody else's by then
            self._finished = True
            os.close(self._sender)
            os.close(self._receiver)
            self._run_all()

    def _run_all(self) -> None:
        self._running = True
        try:
            while self._commands:
                self._commands.popleft()()
        finally:
            self._running = False
