"""Workers' standard error: passed on as it comes, its last lines kept for when they die."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque

#: So much of a worker's standard error is kept, and so many lines of it are shown.
KEPT_NBYTES = 4096
SHOWN_LINES = 12


class LastWords:
    """What one worker wrote last. Threads: one writes, any reads."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._nbytes = 0
        self._lock = threading.Lock()
        self.finished = threading.Event()

    def add(self, data: bytes) -> None:
        """Take in what was written."""
        data = data[-KEPT_NBYTES:]
        with self._lock:
            self._chunks.append(data)
            self._nbytes += len(data)
            while self._nbytes - len(self._chunks[0]) >= KEPT_NBYTES:
                self._nbytes -= len(self._chunks.popleft())

    def text(self) -> str:
        """The last lines; empty if there are none."""
        with self._lock:
            data = b"".join(self._chunks)[-KEPT_NBYTES:]
        lines = data.decode(errors="replace").replace("\r", "\n").split("\n")
        return "\n".join([line for line in lines if line.strip()][-SHOWN_LINES:])


class StandardErrors:
    """Passes workers' standard error on to this process's, from a thread of its own.

    The hub's thread must not do it: whoever reads ours may be slow. The thread ends when there is
    no worker, and no child of one, that could still write. Threads: any.

    Args:
        sink: The descriptor to write to.
    """

    def __init__(self, sink: int = 2) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._sources: dict[int, LastWords] = {}
        self._wake_receiver, self._wake_sender = -1, -1

    def take_in(self, fd: int) -> LastWords:
        """Pass on what comes from ``fd``, the reading end of a pipe, and close it at its end.

        Raises:
            OSError: There are no descriptors, or no thread, to be had.
        """
        words = LastWords()
        with self._lock:
            if self._wake_sender < 0:
                self._start(fd, words)
            else:
                self._sources[fd] = words
                self._wake()
        return words

    def _start(self, fd: int, words: LastWords) -> None:
        self._wake_receiver, self._wake_sender = os.pipe()
        os.set_blocking(self._wake_sender, False)
        self._sources[fd] = words
        try:
            threading.Thread(target=self._run, name="zfast-stderr", daemon=True).start()
        except RuntimeError as error:
            del self._sources[fd]
            self._close_wake()
            raise OSError(errno.EAGAIN, str(error)) from error

    def _close_wake(self) -> None:
        os.close(self._wake_receiver)
        os.close(self._wake_sender)
        self._wake_receiver = self._wake_sender = -1

    def _wake(self) -> None:
        try:
            os.write(self._wake_sender, b"\0")
        except BlockingIOError:
            pass  # it is awake anyway

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._sources:
                    self._close_wake()
                    return
                fds = list(self._sources)
            # Not select(2), which knows no descriptor above 1023.
            poll = select.poll()
            for fd in [*fds, self._wake_receiver]:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self._wake_receiver:
                    os.read(fd, 4096)
                else:
                    self._pass_on(fd)

    def _pass_on(self, fd: int) -> None:
        words = self._sources[fd]
        data = os.read(fd, 65536)
        if not data:
            with self._lock:
                del self._sources[fd]
            os.close(fd)
            words.finished.set()
            return
        words.add(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._sink, view) :]
        except OSError:
            pass  # nobody reads ours
