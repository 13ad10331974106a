"""The file of a segment, as the hub keeps it for those who are to map it."""

from __future__ import annotations

import os
import weakref


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
