"""What a relay keeps of publishers that have gone, for who was away or comes late. Bounded."""

from __future__ import annotations

import time
from collections.abc import KeysView

from zfast.events.memory import EventMemory

#: For so long the states that a publisher left behind are told to who asks.
KEPT_S = 300.0
#: Publishers that are kept, and the bytes of their events; the earliest are forgotten first.
KEPT_PUBLISHERS = 1024
KEPT_NBYTES = 256 << 20


class Departed:
    """Publishers that have gone, whose memories are still there. Threads: one at a time.

    Args:
        memories: Those of all publishers; of those that are forgotten they are taken out.
    """

    def __init__(self, memories: dict[bytes, EventMemory]) -> None:
        self._memories = memories
        #: Until when, and how many bytes; in the order in which they have gone.
        self._kept: dict[bytes, tuple[float, int]] = {}
        self._nbytes = 0

    @property
    def publishers(self) -> KeysView[bytes]:
        """Who has gone, and is remembered; a view."""
        return self._kept.keys()

    def keep(self, publisher: bytes) -> None:
        """A publisher has gone: remember it for a while, if there is anything to remember."""
        memory = self._memories.get(publisher)
        if memory is None:
            return
        nbytes = memory.nbytes
        self._kept[publisher] = (time.monotonic() + KEPT_S, nbytes)
        self._nbytes += nbytes
        while len(self._kept) > KEPT_PUBLISHERS or self._nbytes > KEPT_NBYTES:
            self.forget(next(iter(self._kept)))

    def forget(self, publisher: bytes) -> None:
        """Remember it no longer; nothing happens to one that has not gone."""
        if publisher in self._kept:
            self._nbytes -= self._kept.pop(publisher)[1]
            del self._memories[publisher]

    def forget_old(self) -> None:
        """Forget those whose time is over."""
        now = time.monotonic()
        while self._kept:
            publisher, (until_s, _) = next(iter(self._kept.items()))
            if now < until_s:
                return
            self.forget(publisher)
