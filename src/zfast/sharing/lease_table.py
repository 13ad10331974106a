"""The lease table: the one authority on who may read which publication, and when it is free.

A publication is a range of a segment that its owner has promised not to write to. Processes hold
leases on it, counted, since one process can be sent the same publication many times. When the
last lease ends, the owner may use the memory again and is told so once. A publication outlives
its owner: the segment's memory belongs to whoever holds its descriptor. What is left of it then is
reduced to what is leased.

::

    unknown ─ publish ─▶ leased ─ last release ─▶ free (told to the owner, never leased again)
                          │  ▲
                          └──┘ grant, release

Nothing here knows a socket or a byte of shared memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from zfast.errors import ProtocolError
from zfast.sharing.descriptor import Descriptor

#: A process in the table: a worker's routing id, or ``DRIVER``.
Process = bytes
DRIVER: Process = b""
#: So many times what is leased of it a segment may keep when its owner is gone. To reduce it copies
#: what is leased: once in so many bytes that are given back.
MAX_KEPT_RATIO = 8


@dataclass(frozen=True, slots=True)
class Free:
    """Tell ``owner`` that it may use a publication's memory again."""

    owner: Process
    generation: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A segment is gone: close it here, and have every process unmap it."""

    segment_id: bytes


@dataclass(frozen=True, slots=True)
class Reduce:
    """A segment's owner is gone, and little of it is leased: keep its memory in ``ranges`` alone.

    Attributes:
        ranges: Offset and length of each publication.
    """

    segment_id: bytes
    ranges: list[tuple[int, int]]


Effect = Free | Drop | Reduce


@dataclass(slots=True)
class _Segment:
    owner: Process
    nbytes: int
    owner_lives: bool = True
    publications: set[int] = field(default_factory=set)
    leased_nbytes: int = 0  # of its publications
    kept_nbytes: int = 0  # of memory that there is for them


@dataclass(slots=True)
class _Publication:
    descriptor: Descriptor
    holders: Counter[Process] = field(default_factory=Counter)


class LeaseTable:
    """Segments, publications and their leases. Threads: one at a time; the caller sees to it.

    Methods return what follows from them, for the caller to carry out. Those that can refuse
    raise before they change anything.
    """

    def __init__(self) -> None:
        self._segments: dict[bytes, _Segment] = {}
        self._publications: dict[tuple[bytes, int], _Publication] = {}
        self._held: dict[Process, set[tuple[bytes, int]]] = {}
        self._last_generation: Counter[Process] = Counter()

    def add_segment(self, owner: Process, segment_id: bytes, nbytes: int) -> None:
        """Take in a segment that ``owner`` made.

        Raises:
            ProtocolError: The id is taken.
        """
        if segment_id in self._segments:
            raise ProtocolError(f"segment {segment_id[:3].hex()}… is known already")
        self._segments[segment_id] = _Segment(owner, nbytes, kept_nbytes=nbytes)

    def remove_segment(self, owner: Process, segment_id: bytes) -> list[Effect]:
        """Let go of a segment whose memory ``owner`` has given back; it has no leases then.

        Raises:
            ProtocolError: It is another's, or leased.
        """
        segment = self._segment(segment_id)
        if segment.owner != owner or segment.publications:
            raise ProtocolError(f"segment {segment_id[:3].hex()}… is not {owner!r}'s to remove")
        del self._segments[segment_id]
        return [Drop(segment_id)]

    def publish(self, owner: Process, descriptor: Descriptor, holder: Process) -> None:
        """Open a publication, ``holder`` having its first lease.

        Raises:
            ProtocolError: The segment is not the owner's, the range is not in it, or the
                generation is not a new one.
        """
        descriptor.check()
        segment = self._segment(descriptor.segment_id)
        if segment.owner != owner or not segment.owner_lives:
            raise ProtocolError(f"{descriptor}: the segment is not {owner!r}'s")
        if descriptor.offset + descriptor.nbytes > segment.nbytes:
            raise ProtocolError(f"{descriptor}: the segment ends at {segment.nbytes}")
        if descriptor.generation <= self._last_generation[owner]:
            raise ProtocolError(f"{descriptor}: the generation was given out before")
        self._last_generation[owner] = descriptor.generation
        segment.publications.add(descriptor.generation)
        segment.leased_nbytes += descriptor.nbytes
        self._publications[descriptor.key] = _Publication(descriptor)
        self._add(descriptor.key, holder)

    def has_segment(self, segment_id: bytes) -> bool:
        """Whether a segment is known."""
        return segment_id in self._segments

    def is_published(self, descriptor: Descriptor) -> bool:
        """Whether that generation is open, whatever part of it is meant."""
        return descriptor.key in self._publications

    def grant(self, descriptor: Descriptor, holder: Process, *, by: Process) -> None:
        """Give ``holder`` a lease on the word of ``by``, who has one or owns the segment.

        Raises:
            ProtocolError: The publication is unknown or closed, ``descriptor`` is not part of
                it, or ``by`` may not read it itself.
        """
        publication = self._publication(descriptor)
        if not descriptor.within(publication.descriptor):
            raise ProtocolError(f"{descriptor} is not within {publication.descriptor}")
        if by not in publication.holders and by != self._segments[descriptor.segment_id].owner:
            raise ProtocolError(f"{descriptor}: {by!r} holds no lease on it")
        self._add(descriptor.key, holder)

    def release(self, key: tuple[bytes, int], holder: Process) -> list[Effect]:
        """End one lease.

        Raises:
            ProtocolError: The holder has none.
        """
        publication = self._publications.get(key)
        if publication is None or not publication.holders[holder]:
            raise ProtocolError(
                f"{holder!r} releases generation {key[1]} of segment {key[0][:3].hex()}…, "
                "on which it has no lease"
            )
        publication.holders[holder] -= 1
        if publication.holders[holder]:
            return []
        del publication.holders[holder]
        self._held[holder].discard(key)
        return self._close_if_free(key)

    def end_process(self, process: Process) -> list[Effect]:
        """End every lease of a process that is gone; what it owns lives on while it is leased."""
        effects: list[Effect] = []
        for segment in self._segments.values():
            if segment.owner == process:
                segment.owner_lives = False
        for key in self._held.pop(process, set()):
            del self._publications[key].holders[process]
            effects += self._close_if_free(key)
        for segment_id, segment in list(self._segments.items()):
            if not segment.owner_lives:  # those of others, too: perhaps there is memory now
                effects += self._give_back(segment_id)
        self._last_generation.pop(process, None)
        return effects

    def not_reduced(self, segment_id: bytes) -> None:
        """There was no memory to ``Reduce`` a segment: try when more leases end, or a process."""
        segment = self._segment(segment_id)
        segment.kept_nbytes = segment.nbytes

    def may_read(self, process: Process, segment_id: bytes) -> bool:
        """Whether a process may map a segment: it owns it, or has a lease in it."""
        segment = self._segments.get(segment_id)
        if segment is None:
            return False
        return segment.owner == process or any(
            process in self._publications[segment_id, generation].holders
            for generation in segment.publications
        )

    def leases(self) -> Iterator[tuple[Process, Descriptor, int]]:
        """Every lease: its holder, the publication and how often it is held."""
        for publication in self._publications.values():
            for holder, count in publication.holders.items():
                yield holder, publication.descriptor, count

    def n_held(self, process: Process) -> int:
        """On how many publications a process has leases."""
        return len(self._held.get(process, ()))

    def owned_nbytes(self, owner: Process) -> tuple[int, int]:
        """Bytes of a process's segments, and of its open publications."""
        own = [(id_, segment) for id_, segment in self._segments.items() if segment.owner == owner]
        lent = sum(
            self._publications[id_, generation].descriptor.nbytes
            for id_, segment in own
            for generation in segment.publications
        )
        return sum(segment.nbytes for _, segment in own), lent

    @property
    def n_segments(self) -> int:
        """Segments that are known."""
        return len(self._segments)

    @property
    def leased_nbytes(self) -> int:
        """Bytes of all open publications."""
        return sum(item.descriptor.nbytes for item in self._publications.values())

    def _segment(self, segment_id: bytes) -> _Segment:
        segment = self._segments.get(segment_id)
        if segment is None:
            raise ProtocolError(f"segment {segment_id[:3].hex()}… is unknown or gone")
        return segment

    def _publication(self, descriptor: Descriptor) -> _Publication:
        publication = self._publications.get(descriptor.key)
        if publication is None:
            raise ProtocolError(f"{descriptor}: unknown, or free again")
        return publication

    def _add(self, key: tuple[bytes, int], holder: Process) -> None:
        self._publications[key].holders[holder] += 1
        self._held.setdefault(holder, set()).add(key)

    def _close_if_free(self, key: tuple[bytes, int]) -> list[Effect]:
        if self._publications[key].holders:
            return []
        segment_id, generation = key
        closed = self._publications.pop(key)
        segment = self._segments[segment_id]
        segment.publications.discard(generation)
        segment.leased_nbytes -= closed.descriptor.nbytes
        if segment.owner_lives:
            return [Free(segment.owner, generation)]
        return self._give_back(segment_id)

    def _give_back(self, segment_id: bytes) -> list[Effect]:
        """Let go of what nobody needs of a segment whose owner is gone."""
        segment = self._segments[segment_id]
        if not segment.publications:
            del self._segments[segment_id]
            return [Drop(segment_id)]
        if segment.leased_nbytes * MAX_KEPT_RATIO > segment.kept_nbytes:
            return []
        segment.kept_nbytes = segment.leased_nbytes
        published = (
            self._publications[segment_id, item].descriptor for item in segment.publications
        )
        return [Reduce(segment_id, [(item.offset, item.nbytes) for item in published])]
