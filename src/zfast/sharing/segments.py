"""Segments as one process sees them: its own, and those of its peers that it maps once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

from zfast import _arena
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.forks import n_forks


class Segment(Protocol):
    """Where publications lie."""

    def view(self, descriptor: Descriptor, owner: object) -> memoryview:
        """Read-only bytes of a publication; they keep ``owner`` and the mapping alive."""
        ...


class Lease:
    """This process's right to read one publication, until it is collected.

    Args:
        descriptor: What may be read.
        segment: Where it lies.
        on_end: Called once with the lease's descriptor and ``born``, on any thread, at any moment:
            it must not wait for a lock that its own thread may hold.

    Attributes:
        born: How often this process had forked when the lease began.

    Lifetime: views keep it alive. Threads: any. In a forked child its end means nothing.
    """

    __slots__ = ("__weakref__", "_on_end", "_pid", "born", "descriptor", "segment")

    def __init__(
        self,
        descriptor: Descriptor,
        segment: Segment,
        on_end: Callable[[Descriptor, int], None] | None,
    ) -> None:
        self.descriptor = descriptor
        self.segment = segment
        self._on_end = on_end
        self._pid = os.getpid()
        self.born = n_forks()

    def view(self) -> memoryview:
        """The publication's bytes, read-only."""
        return self.segment.view(self.descriptor, self)

    def __del__(self) -> None:
        if self._on_end is not None and self._pid == os.getpid():
            self._on_end(self.descriptor, self.born)


class OwnSegment:
    """A segment of this process's arena."""

    def __init__(self, index: int) -> None:
        self._index = index

    def view(self, descriptor: Descriptor, owner: object) -> memoryview:
        """Read-only bytes of a publication; they keep ``owner`` alive."""
        return memoryview(_arena.own_view(self._index, descriptor.offset, descriptor.nbytes, owner))


class PeerSegment:
    """A segment of another process, mapped when something in it is read first.

    Args:
        open_fd: Gives a descriptor of its memory and its size; the descriptor is closed again once
            it is mapped.

    Threads: any.
    """

    def __init__(self, segment_id: bytes, open_fd: Callable[[], tuple[int, int]]) -> None:
        self.segment_id = segment_id
        self._open_fd = open_fd
        self._mapping: _arena.Mapping | None = None
        self._lock = threading.Lock()
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()

    def view(self, descriptor: Descriptor, owner: object) -> memoryview:
        """Read-only bytes of a publication; they keep ``owner`` and the mapping alive.

        Raises:
            ArenaError: The segment cannot be mapped, or ends before the publication does.
        """
        with self._lock:
            if self._mapping is None:
                fd, nbytes = self._open_fd()
                try:
                    self._mapping = _arena.Mapping(fd, nbytes)
                finally:
                    os.close(fd)
            mapping = self._mapping
        if isinstance(owner, Lease):
            self._leases.add(owner)
        return memoryview(mapping.view(descriptor.offset, descriptor.nbytes, owner))

    @property
    def is_mapped(self) -> bool:
        """Whether it takes up addresses of this process."""
        return self._mapping is not None

    def find(self, address: int, nbytes: int) -> Descriptor | None:
        """Describe a range of memory that a live lease of this process covers, else None."""
        mapping = self._mapping
        if mapping is None or not mapping.contains(address):
            return None
        offset = address - mapping.address
        for lease in self._live_leases():
            known = lease.descriptor
            part = Descriptor(known.segment_id, known.generation, offset, nbytes)
            if part.within(known):
                return part
        return None

    def _live_leases(self) -> Iterator[Lease]:
        return iter(list(self._leases))
