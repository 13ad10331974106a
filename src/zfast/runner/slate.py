"""A worker's slate: a page of memory on which it notes what it does, readable after its death."""

from __future__ import annotations

import mmap

_NBYTES = mmap.PAGESIZE
_BEGUN, _BEATS, _FINISHING = 0, 1, 2
#: What the file of a new slate holds: a hole could not be filled on a full disk, which is a SIGBUS.
BLANK = bytes(_NBYTES)


class Slate:
    """What a worker writes and its hub reads, without a message.

    Each is one aligned word with one writer, so that no half-written value is seen.

    Args:
        fd: A file of a page; stays the caller's.

    Threads: any.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _NBYTES)
        self._words = memoryview(self._memory).cast("Q")

    @property
    def begun(self) -> int:
        """The serial of the last job that the worker has begun; 0 before the first."""
        return self._words[_BEGUN]

    @begun.setter
    def begun(self, serial: int) -> None:
        self._words[_BEGUN] = serial

    @property
    def beats(self) -> int:
        """How often the worker's interpreter has let its I/O thread run."""
        return self._words[_BEATS]

    def beat(self) -> None:
        """Count one more sign of life; only the I/O thread may."""
        self._words[_BEATS] += 1

    @property
    def is_finishing(self) -> bool:
        """Whether the worker, told to stop, waits for tasks that its own tasks have submitted."""
        return bool(self._words[_FINISHING])

    @is_finishing.setter
    def is_finishing(self, value: bool) -> None:
        self._words[_FINISHING] = value

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._memory.close()
