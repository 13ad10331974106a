"""Acknowledger: tells peers what was read when nothing else did in a while.

An acknowledgement for each message would double the messages of a conversation, and wake its peer
in vain. So they ride on the next message to the same peer, or go before a wait; what is still owed
after ``DELAY_S`` is sent from a thread of this process.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Protocol

#: How long an acknowledgement may wait for a message to ride on.
DELAY_S = 0.02


class Owing(Protocol):
    """Something that owes acknowledgements."""

    def acknowledge_late(self) -> None:
        """Send them, unless its own thread is about to. Must not block or raise."""


class Acknowledger:
    """The thread and its queue. Threads: ``remember`` from any."""

    def __init__(self) -> None:
        self._owing: deque[Owing] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def remember(self, owing: Owing) -> None:
        """Call ``owing.acknowledge_late`` once, in a while."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="zfast-acknowledger", daemon=True
            )
            self._thread.start()
        self._owing.append(owing)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(DELAY_S)
            self._wake.clear()
            for _ in range(len(self._owing)):
                self._owing.popleft().acknowledge_late()


acknowledger = Acknowledger()


def _after_fork_in_child() -> None:
    # Its thread is the parent's, and so are the channels.
    acknowledger.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork_in_child)
