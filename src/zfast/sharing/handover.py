"""Handing values over: large buffers as descriptors into shared memory, the others as they are."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from zfast import arena
from zfast.codec import Payload, address_of
from zfast.errors import ArenaError, TransportError
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.segments import Found, Lease, OwnSegment, Segment

logger = logging.getLogger("zfast.runner")

#: A smaller buffer is cheaper in a frame than as a publication.
SHARED_MIN_NBYTES = 64 * 1024
#: A block is handed over as it is if at least one byte in so many is sent; else what is sent is
#: copied, because a block lives as long as any part of it is used.
MAX_SLACK = 2

#: By address and nbytes of a buffer: its copy, and the buffer itself.
Copies = dict[tuple[int, int], "tuple[memoryview | Lease, memoryview]"]


class _Referable:
    """What may be referred to weakly, also where a dataclass cannot say so (Python 3.10)."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class Parcel(_Referable):
    """A payload on its way between processes.

    Attributes:
        header: As the payload's.
        parts: Its buffers in order: bytes that travel, or leases on bytes that stay.
    """

    header: bytes
    parts: list[memoryview | Lease]

    def open(self) -> Payload:
        """The payload, its leased buffers mapped; they keep their leases.

        Raises:
            ArenaError, TransportError: A segment cannot be had or mapped.
            ResultLostError: A part lay on a host that was lost.
        """
        return Payload(
            self.header,
            [part.view() if isinstance(part, Lease) else part for part in self.parts],
        )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all parts are on this host, or lost; False if that takes longer.

        Raises:
            ResultLostError: This process is a fork that cannot have them sent.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        segments = [lease.segment for lease in self._leases]
        for segment in segments:
            segment.prefetch()
        return all(
            segment.wait(None if until is None else max(0.0, until - time.monotonic()))
            for segment in segments
        )

    @property
    def is_remote(self) -> bool:
        """Whether a part lies on another host, and would be lost with it."""
        return any(lease.segment.is_remote for lease in self._leases)

    @property
    def is_lost(self) -> bool:
        """Whether a part lay on a host that was lost."""
        return any(lease.segment.is_lost for lease in self._leases)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, and of the header."""
        return len(self.header) + sum(
            part.descriptor.nbytes if isinstance(part, Lease) else part.nbytes
            for part in self.parts
        )

    @property
    def shared_nbytes(self) -> int:
        """Bytes of the parts that stay where they are."""
        return sum(lease.descriptor.nbytes for lease in self._leases)

    @property
    def _leases(self) -> list[Lease]:
        return [part for part in self.parts if isinstance(part, Lease)]


class Authority(Protocol):
    """What a process has of the hub's lease table."""

    def add_segment(self, segment_id: bytes, index: int, fd: int, nbytes: int) -> None:
        """Make a segment of this process known; ``fd`` stays the caller's.

        Raises:
            TransportError, OSError: That cannot be done now.
        """
        ...

    def publish(self, descriptor: Descriptor, segment: Segment) -> Lease:
        """Open a publication of this process; the lease says how long it is needed here."""
        ...

    def lease_again(self, found: Found) -> Lease:
        """Pass on a publication, or a part of it, that this process holds a lease on."""
        ...


class Handover:
    """Packs what this process gives away. Threads: any.

    Args:
        authority: Who hears of it.
        segments: The segments that something is read in here.
        shared: False where processes cannot share memory: everything travels.
    """

    def __init__(
        self,
        authority: Authority,
        segments: Callable[[], Iterable[Segment]],
        *,
        shared: bool,
    ) -> None:
        self._shared = shared
        self._authority = authority
        self._segments = segments
        self._announced: dict[bytes, int] = {}
        # Generations must reach the table in the order they are made.
        self._lock = threading.Lock()

    def pack(self, payload: Payload) -> Parcel:
        """Put every large buffer where the receiver can read it.

        What came from a peer is leased again. What lies in this process's arena and is sealed is
        published as it is. Anything else is copied into the arena, once; when the arena is full,
        or nobody can be told of its memory, it stays a buffer, and travels.
        """
        parts: list[memoryview | Lease] = list(payload.buffers)
        own: list[int] = []
        for index, buffer in enumerate(payload.buffers):
            if self._shared and buffer.nbytes >= SHARED_MIN_NBYTES:
                again = self._lease_again(buffer)
                if again is None:
                    own.append(index)
                else:
                    parts[index] = again
        for index, lease in self._publish_sealed(payload.buffers, own).items():
            parts[index] = lease
        for index in own:
            if not isinstance(parts[index], Lease):
                copy = self._publish_copy(payload.buffers[index])
                parts[index] = payload.buffers[index] if copy is None else copy
        return Parcel(payload.header, parts)

    def snapshot(self, payload: Payload, copies: Copies | None = None) -> Parcel:
        """As ``pack``, but what travels is copied too: the caller may change it at once.

        Args:
            copies: Copies made before of memory that has not changed since; new ones are added.
        """
        known = {} if copies is None else copies
        places = [(address_of(buffer), buffer.nbytes) for buffer in payload.buffers]
        new = [index for index, place in enumerate(places) if place not in known]
        packed = self.pack(Payload(payload.header, [payload.buffers[index] for index in new]))
        for index, part in zip(new, packed.parts, strict=True):
            copy = part if isinstance(part, Lease) else memoryview(bytes(part))
            # The buffer is kept too, so that its address means nothing else meanwhile.
            known[places[index]] = copy, payload.buffers[index]
        return Parcel(payload.header, [known[place][0] for place in places])

    def publish(self, block: arena.Block, nbytes: int) -> Lease | None:
        """Publish a block of this process's arena that nobody writes to any more.

        Returns:
            None if a fork has made the block private, or nobody can be told of its segment.
        """
        with self._lock:
            publication = arena.publish(block.address, nbytes, exclusive=True)
            return None if publication is None else self._announce(publication, nbytes)

    def identify(self, buffer: memoryview) -> Descriptor | None:
        """Name the memory of a buffer that was received and so can never change, else None."""
        found = self._find(buffer)
        return None if found is None else found.descriptor

    def take_released(self) -> list[bytes]:
        """Segments that were made known and that the arena has given back since."""
        if not self._announced:
            return []
        with self._lock:
            released = [id_ for id_, index in self._announced.items() if not _exists(index)]
            for segment_id in released:
                del self._announced[segment_id]
        return released

    def _find(self, buffer: memoryview) -> Found | None:
        address = address_of(buffer)
        for segment in self._segments():
            found = segment.find(address, buffer.nbytes)
            if found is not None:
                return found
        return None

    def _lease_again(self, buffer: memoryview) -> Lease | None:
        found = self._find(buffer)
        return None if found is None else self._authority.lease_again(found)

    def _publish_sealed(self, buffers: list[memoryview], wanted: list[int]) -> dict[int, Lease]:
        """Publish those buffers that lie in sealed blocks of which enough is sent."""
        with self._lock:
            published: dict[int, arena.Publication] = {}
            sent: Counter[tuple[int, int]] = Counter()
            for index in wanted:
                nbytes = buffers[index].nbytes
                publication = arena.publish(address_of(buffers[index]), nbytes, exclusive=False)
                if publication is not None:
                    published[index] = publication
                    sent[publication.segment_index, publication.block_offset] += nbytes
            leases: dict[int, Lease] = {}
            for index, publication in published.items():
                block = publication.segment_index, publication.block_offset
                if sent[block] * MAX_SLACK < publication.block_nbytes:
                    arena.unpublish(publication.generation)
                    continue
                lease = self._announce(publication, buffers[index].nbytes)
                if lease is not None:
                    leases[index] = lease
            return leases

    def _publish_copy(self, buffer: memoryview) -> Lease | None:
        try:
            block = arena.copy_in(buffer)  # outside the lock: others publish meanwhile
        except ArenaError:
            return None
        return self.publish(block, buffer.nbytes)

    def _announce(self, publication: arena.Publication, nbytes: int) -> Lease | None:
        segment_id, index = publication.segment_id, publication.segment_index
        if segment_id not in self._announced:
            _, fd, segment_nbytes = arena.segment(index)
            try:
                self._authority.add_segment(segment_id, index, fd, segment_nbytes)
            except (TransportError, OSError) as error:  # such as too many open files
                arena.unpublish(publication.generation)
                logger.warning("%d bytes are sent, not shared: %s", nbytes, error)
                return None
            self._announced[segment_id] = index
        descriptor = Descriptor(segment_id, publication.generation, publication.offset, nbytes)
        return self._authority.publish(descriptor, OwnSegment(index))


def _exists(segment_index: int) -> bool:
    try:
        arena.segment(segment_index)
    except ArenaError:
        return False
    return True
