"""A worker's side of shared memory: leases on what it is sent, publications of what it returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from zfast import arena
from zfast.codec import Payload
from zfast.runner.protocol import (
    AttemptId,
    Done,
    Free,
    Gone,
    Release,
    Run,
    join_parcels,
    split_parcels,
)
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.exchange import SegmentClient
from zfast.sharing.handover import Handover, Parcel
from zfast.sharing.segments import Found, Lease, OwnSegment, PeerSegment, Segment


class WorkerLeases:
    """What a worker holds and gives.

    Args:
        segment_socket: The hub's ``SegmentServer``; None where processes cannot share memory.
        wake: Called, from any thread, when there is something for ``take_messages``.

    Threads: ``pack`` and the ends of leases in any; the others in the worker's I/O thread.
    """

    def __init__(self, segment_socket: str | None, wake: Callable[[], None]) -> None:
        self._client = SegmentClient(segment_socket or "")
        self._wake = wake
        self._own: dict[bytes, OwnSegment] = {}
        self._peers: dict[bytes, PeerSegment] = {}
        self._ended: deque[Descriptor] = deque()
        self.handover = Handover(
            self,
            lambda: [*list(self._peers.values()), *list(self._own.values())],
            shared=segment_socket is not None,
        )

    # ---- any thread --------------------------------------------------------------------

    def pack(
        self, attempt: AttemptId, payloads: Iterable[Payload]
    ) -> tuple[Done, list[bytes | memoryview], list[Parcel]]:
        """The message with a job's result, the buffers that travel with it, and what it rests on.

        The parcels, and what the payloads were encoded from, must live until it is on its way.
        """
        parcels = [self.handover.pack(payload) for payload in payloads]
        counts, shared, buffers = join_parcels(parcels)
        return Done(attempt, counts, shared), buffers, parcels

    def add_segment(self, segment_id: bytes, index: int, fd: int, nbytes: int) -> None:
        """Make a segment of this worker known to the hub."""
        self._client.offer(segment_id, fd, nbytes)
        self._own[segment_id] = OwnSegment(index)

    def publish(self, descriptor: Descriptor, segment: Segment) -> Lease:
        """Stand for a publication that the hub opens when it reads the message about it."""
        return Lease(descriptor, segment, None)

    def lease_again(self, found: Found) -> Lease:
        """Stand for a lease that the hub gives the driver when it reads the message about it."""
        return Lease(found.descriptor, found.lease.segment, None, rests_on=found.lease)

    def _end(self, descriptor: Descriptor) -> None:
        self._ended.append(descriptor)
        self._wake()

    # ---- the I/O thread ----------------------------------------------------------------

    def receive(self, run: Run, buffers: list[memoryview]) -> list[Parcel]:
        """A job's parcels, with the leases that came with them.

        Raises:
            ProtocolError: The message does not add up.
        """
        return split_parcels(run, buffers, self._lease)

    def handle(self, message: Free | Gone) -> None:
        """What the hub says of publications of this worker, and of peers' segments."""
        if isinstance(message, Free):
            for generation in message.generations:
                arena.unpublish(generation)
        else:
            for segment_id in message.segment_ids:
                self._peers.pop(segment_id, None)

    def take_messages(self) -> list[Release | Gone]:
        """What the hub is to be told."""
        messages: list[Release | Gone] = []
        keys = [self._ended.popleft().key for _ in range(len(self._ended))]
        if keys:
            messages.append(Release(keys))
        released = self.handover.take_released()
        if released:
            for segment_id in released:
                self._own.pop(segment_id, None)
            messages.append(Gone(released))
        return messages

    def close(self) -> None:
        """Hang up on the hub."""
        self._client.close()

    def _lease(self, descriptor: Descriptor) -> Lease:
        segment_id = descriptor.segment_id
        segment: Segment | None = self._own.get(segment_id) or self._peers.get(segment_id)
        if segment is None:
            segment = self._peers[segment_id] = PeerSegment(lambda: self._client.fetch(segment_id))
        return Lease(descriptor, segment, self._end)
