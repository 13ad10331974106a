"""Buffers lent to libzmq by way of pyzmq, and when they are free again."""

from __future__ import annotations

import threading
import time

import zmq

WAIT_S = 0.2  # how long a wait is deaf to what others do to the tracker


class SendTracker:
    """Tells when libzmq no longer reads the buffers of one message; see ``_core.SendTracker``."""

    def __new__(cls, *_: object, **__: object) -> SendTracker:
        """Make it ready without a constructor: subclasses have their own."""
        tracker = super().__new__(cls)
        tracker._lock = threading.Lock()
        tracker._held = 0
        tracker._lent = []
        return tracker

    _lock: threading.Lock
    _held: int
    _lent: list[zmq.MessageTracker]

    def lend(self, tracker: zmq.MessageTracker) -> None:
        """Count as not done until pyzmq's tracker is."""
        with self._lock:
            self._lent = [other for other in self._lent if not other.done]
            self._lent.append(tracker)

    @property
    def done(self) -> bool:
        """True once the caller may change the buffers again."""
        with self._lock:
            self._lent = [tracker for tracker in self._lent if not tracker.done]
            return not self._held and not self._lent

    def hold(self) -> None:
        """Count as not done until ``unhold``: more of the message is still to be sent."""
        with self._lock:
            self._held += 1

    def unhold(self) -> None:
        """Undo one ``hold``."""
        with self._lock:
            self._held -= 1

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until ``done``, at most ``timeout`` seconds. Returns ``done``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause_s = 0.0005
        while not self.done:
            left_s = WAIT_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(left_s, pause_s))
            pause_s = min(2 * pause_s, 0.01)
        return self.done


def lent_buffers() -> int:
    """Nothing that zfast itself would count: pyzmq keeps the books."""
    return 0
