"""Segments as one process sees them: its own, and those of its peers that it maps once."""

from __future__ import annotations

import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from zfast import arena
from zfast.errors import ArenaError
from zfast.sharing.descriptor import Descriptor

#: How often to look whether forked children are gone, as long as one holds back a lease.
SETTLE_EVERY_S = 0.1


class Segment(ABC):
    """Where publications lie that this process may read. Threads: any."""

    @property
    def is_remote(self) -> bool:
        """Whether it lies on another host, and would be lost with it."""
        return False

    @property
    def is_lost(self) -> bool:
        """Whether it lay on a host that was lost: nothing more in it can be read."""
        return False

    @abstractmethod
    def view(self, lease: Lease) -> memoryview:
        """Read-only bytes of a publication; they keep the lease and the mapping alive.

        Raises:
            ArenaError: The segment cannot be mapped, or ends before the publication does.
            ResultLostError: It lay on a host that was lost.
        """

    def prefetch(self) -> None:
        """Begin to bring here what a view needs."""
        self.wait(0.0)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a view needs not wait; False if that takes longer."""
        return True

    def find(self, address: int, nbytes: int) -> Found | None:
        """Describe a range of memory that a lease covers which is read here, else None."""
        return None


class MappedSegment(Segment):
    """A segment in this host's memory, and which leases on it are read in this process."""

    def __init__(self) -> None:
        self._address: int | None = None
        #: By identity. Not a WeakSet: another thread may add to it while ``find`` goes through.
        self._leases: dict[int, weakref.ref[Lease]] = {}

    def view(self, lease: Lease) -> memoryview:
        """As ``Segment.view``."""
        descriptor = lease.descriptor
        view = self._view(descriptor.offset, descriptor.nbytes, lease)
        self._address = view.address - descriptor.offset
        self._note(lease)
        return memoryview(view)

    def _note(self, lease: Lease) -> None:
        number, leases = id(lease), self._leases
        leases[number] = weakref.ref(lease, lambda ended: _forget(leases, number, ended))

    def find(self, address: int, nbytes: int) -> Found | None:
        """As ``Segment.find``."""
        if self._address is None or address < self._address:
            return None
        offset = address - self._address
        for reference in list(self._leases.values()):  # one step, whatever other threads do
            lease = reference()
            if lease is None:
                continue
            known = lease.descriptor
            part = Descriptor(known.segment_id, known.generation, offset, nbytes)
            if part.within(known):
                return Found(part, lease)
        return None

    @abstractmethod
    def _view(self, offset: int, nbytes: int, owner: object) -> arena.SharedView: ...


def _forget(leases: dict[int, weakref.ref[Lease]], number: int, ended: weakref.ref[Lease]) -> None:
    if leases.get(number) is ended:  # else a newer lease has that number
        leases.pop(number, None)


class Lease:
    """This process's right to read one publication, until it is collected.

    Args:
        descriptor: What may be read.
        segment: Where it lies.
        on_end: Called once with the lease's descriptor, on any thread, at any moment: it must
            not wait for a lock that its own thread may hold.
        rests_on: Another lease that does not end before this one.

    Lifetime: views keep it alive, also those that a forked child has inherited. Threads: any. In a
    forked child its end means nothing.
    """

    __slots__ = ("__weakref__", "_on_end", "_pid", "_rests_on", "descriptor", "segment")

    def __init__(
        self,
        descriptor: Descriptor,
        segment: Segment,
        on_end: Callable[[Descriptor], None] | None,
        rests_on: Lease | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.segment = segment
        self._on_end = on_end
        self._rests_on = rests_on
        self._pid = os.getpid()

    def view(self) -> memoryview:
        """The publication's bytes, read-only."""
        return self.segment.view(self)

    def __del__(self) -> None:
        if self._on_end is not None and self._pid == os.getpid():
            self._on_end(self.descriptor)


class Found(NamedTuple):
    """Memory that can be passed on.

    Attributes:
        descriptor: Where it lies.
        lease: What allows it, for as long as this is held: the same memory may be published more
            than once, and who reads it hold another lease.
    """

    descriptor: Descriptor
    lease: Lease


class OwnSegment(MappedSegment):
    """A segment of this process's arena."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def _view(self, offset: int, nbytes: int, owner: object) -> arena.SharedView:
        return arena.own_view(self._index, offset, nbytes, owner)


class PeerSegment(MappedSegment):
    """A segment of another process, mapped when something in it is read first.

    Args:
        open_fd: Gives a descriptor of its memory and its size; the descriptor is closed again once
            it is mapped.
    """

    def __init__(self, open_fd: Callable[[], tuple[int, int]]) -> None:
        super().__init__()
        self._open_fd = open_fd
        self._mapping: arena.Mapping | None = None
        self._lock = threading.Lock()

    def _view(self, offset: int, nbytes: int, owner: object) -> arena.SharedView:
        with self._lock:
            if self._mapping is None:
                fd, segment_nbytes = self._open_fd()
                try:
                    self._mapping = arena.Mapping(fd, segment_nbytes)
                finally:
                    os.close(fd)
        return self._mapping.view(offset, nbytes, owner)

    def map_again(self) -> None:
        """Let go of the memory that was mapped, for that which ``open_fd`` gives by now.

        What is read here must be the same there; its views stay valid.
        """
        # Not waited for: the collector may call this on a thread that is just mapping it, or that
        # others wait for. The memory is then let go with the last view.
        if self._mapping is None or not self._lock.acquire(blocking=False):
            return
        try:
            fd, _ = self._open_fd()
            try:
                self._mapping.replace(fd)
            finally:
                os.close(fd)
        except (ArenaError, OSError):
            pass  # such as too many open files: as above
        finally:
            self._lock.release()


def next_settling() -> float:
    """End leases that forked children held back and that are gone by now.

    Returns:
        When to call it again at the latest, by the monotonic clock.
    """
    return time.monotonic() + SETTLE_EVERY_S if arena.settle_loans() else float("inf")
