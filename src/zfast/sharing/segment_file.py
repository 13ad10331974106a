"""The file of a segment, as the hub keeps it for those who are to map it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

from zfast import arena
from zfast.errors import ArenaError


class SegmentFile:
    """A segment's memory, by its descriptor. Threads: any.

    Args:
        fd: This object's from now on.
        nbytes: The segment's length.

    Lifetime: closed with the last reference to this.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        weakref.finalize(self, os.close, fd).atexit = False

    def open(self) -> tuple[int, int]:
        """A new descriptor of it, the caller's to close, and the segment's length."""
        return os.dup(self.fd), self.nbytes

    def reduce(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Put another file in its place, which has the bytes of some ranges and no other memory.

        Who has mapped it keeps what it has.

        Args:
            ranges: Offset and length of each.

        Returns:
            False if there is no memory for that, or no file: then all is as it was.
        """
        try:
            reduced = arena.extract(self.fd, self.nbytes, ranges)
        except ArenaError:
            return False
        os.dup2(reduced, self.fd, inheritable=False)  # at one blow, for threads that open it
        os.close(reduced)
        return True
