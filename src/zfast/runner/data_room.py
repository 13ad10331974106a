"""Room in the arena for what is fetched."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from zfast import arena
from zfast.errors import ZfastError

#: New memory takes up to a second a GiB, and the loop that fetches must not stand still so long.
LARGE_NBYTES = 32 << 20


class Room:
    """Makes blocks, large ones on a thread of its own. Threads: one.

    Each is a future with the block, or with ArenaError if there is no room; that of a small one is
    done at once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="zfast-room")

    def make(self, nbytes: int) -> Future[arena.Block]:
        """A block of uninitialised memory."""
        return self._do(nbytes, lambda: arena.allocate(nbytes))

    def copy_in(self, data: memoryview) -> Future[arena.Block]:
        """A block with a copy of bytes that must not change meanwhile."""
        return self._do(data.nbytes, lambda: arena.copy_in(data))

    def _do(self, nbytes: int, make: Callable[[], arena.Block]) -> Future[arena.Block]:
        if nbytes >= LARGE_NBYTES:
            return self._thread.submit(make)
        made: Future[arena.Block] = Future()
        try:
            made.set_result(make())
        except ZfastError as error:
            made.set_exception(error)
        return made

    def close(self) -> None:
        """Make no more; what is being made is let go of when it is there."""
        self._thread.shutdown(wait=False, cancel_futures=True)
