"""The hub's desk for shared memory: lease table, segments' files, and who is told what."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import zmq

from zfast import arena
from zfast.errors import ProtocolError
from zfast.runner.protocol import Done, Free, Gone, Run, split_parcels
from zfast.sharing import lease_table
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.exchange import SegmentServer
from zfast.sharing.handover import Handover, Parcel
from zfast.sharing.lease_table import DRIVER, Effect, LeaseTable, Process
from zfast.sharing.segment_file import SegmentFile
from zfast.sharing.segments import Found, Lease, OwnSegment, PeerSegment, Segment

logger = logging.getLogger("zfast.runner")


class LeaseDesk:
    """Leases of the driver and its workers.

    Args:
        command: Runs something on the hub's thread, in the order of the calls; at once when the
            hub has ended. Called from any thread, and by the collector at any moment.
        shared: False where processes cannot share memory.

    Threads: the hub's, but for ``handover`` and what the authority's methods do, which any may use.
    """

    def __init__(self, command: Callable[[Callable[[], None]], None], *, shared: bool) -> None:
        self._command = command
        self._table = LeaseTable()
        self._segments: dict[bytes, Segment] = {}
        self._files: dict[bytes, SegmentFile] = {}
        self._workers: dict[int, Process] = {}
        self._owners: dict[bytes, Process] = {}
        self._frees: defaultdict[Process, list[int]] = defaultdict(list)
        self._drops: list[bytes] = []
        self._server: SegmentServer | None = None
        self._closed = False
        self._shared = shared
        self.handover = Handover(self, lambda: list(self._segments.values()), shared=shared)

    # ---- any thread: what the driver gives and reads ------------------------------------

    def add_segment(self, segment_id: bytes, index: int, fd: int, nbytes: int) -> None:
        """Make a segment of the driver's arena known; ``fd`` stays the caller's."""
        own_fd = os.dup(fd)
        self._command(lambda: self._add_own(segment_id, index, own_fd, nbytes))

    def publish(self, descriptor: Descriptor, segment: Segment) -> Lease:
        """Open a publication of the driver's arena."""
        self._command(lambda: self._table.publish(DRIVER, descriptor, DRIVER))
        return Lease(descriptor, segment, self._end)

    def lease_again(self, found: Found) -> Lease:
        """Another lease for the driver on what it has one on."""
        # That one is held by the caller: its end is a later command than this.
        self._command(lambda: self._table.grant(found.descriptor, DRIVER, by=DRIVER))
        return Lease(found.descriptor, found.lease.segment, self._end)

    def _end(self, descriptor: Descriptor) -> None:
        self._command(lambda: self.release(DRIVER, [descriptor.key]))

    # ---- the hub's thread ---------------------------------------------------------------

    def open(self, path: Path, poller: zmq.Poller) -> None:
        """Let workers exchange segments at a socket, whose requests wake ``poller``."""
        if self._shared:
            self._server = SegmentServer(
                path,
                poller,
                self,
                lambda reason: logger.warning("request for shared memory refused: %s", reason),
            )

    def serve(self) -> None:
        """Answer what workers asked."""
        if self._server is not None:
            self._server.serve()

    def close(self) -> None:
        """Hang up on the workers. Leases of the driver live on, but nobody maps its memory now."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for segment_id, segment in list(self._segments.items()):
            if isinstance(segment, OwnSegment):
                del self._segments[segment_id], self._files[segment_id]

    def admit(self, worker: Process, pid: int) -> None:
        """Let a worker that was just started use the segment server."""
        self._workers[pid] = worker

    def take_segment(self, pid: int, segment_id: bytes, fd: int, nbytes: int) -> None:
        """Take in a worker's segment; ``fd`` is the desk's from now on.

        A worker that did not hear the answer in time offers it again.

        Raises:
            ProtocolError: It is not a worker's, or not a segment.
        """
        try:
            if self._owners.get(segment_id) == self._worker(pid):
                os.close(fd)
                return
            if os.fstat(fd).st_size < nbytes:
                raise ProtocolError(f"a segment of {nbytes} bytes whose file is shorter")
            self._table.add_segment(self._worker(pid), segment_id, nbytes)
        except BaseException:
            os.close(fd)
            raise
        self._owners[segment_id] = self._worker(pid)
        file = SegmentFile(fd, nbytes)
        self._files[segment_id] = file
        self._segments[segment_id] = PeerSegment(file.open)

    def lend_segment(self, pid: int, segment_id: bytes) -> tuple[int, int]:
        """A descriptor, which stays the desk's, and the size of a segment.

        Raises:
            ProtocolError: The process is not a worker, or has no lease in it.
        """
        if not self._table.may_read(self._worker(pid), segment_id):
            raise ProtocolError(f"no lease in segment {segment_id[:3].hex()}…")
        file = self._files[segment_id]
        return file.fd, file.nbytes

    def receive(self, worker: Process, message: Done, buffers: list[memoryview]) -> list[Parcel]:
        """A result's parcels, the driver having leases on them.

        Raises:
            ProtocolError: A descriptor is forged or stale, or the message does not add up.
        """
        # In the order of their generations, which need not be that of the buffers.
        new = sorted(filter(None, message.shared), key=lambda descriptor: descriptor.generation)
        leases: defaultdict[Descriptor, list[Lease]] = defaultdict(list)
        for descriptor in new:
            leases[descriptor].append(self._accept(worker, descriptor))
        return split_parcels(message, buffers, lambda descriptor: leases[descriptor].pop())

    def grant(self, worker: Process, run: Run) -> None:
        """Give a worker a lease on everything that is sent to it."""
        for descriptor in run.shared:
            if descriptor is not None:
                self._table.grant(descriptor, worker, by=DRIVER)

    def owned_nbytes(self, parcels: Iterable[Parcel]) -> Counter[Process]:
        """How many bytes of some parcels lie in the memory of each worker."""
        owned: Counter[Process] = Counter()
        for parcel in parcels:
            for part in parcel.parts:
                if isinstance(part, Lease) and part.descriptor.segment_id in self._owners:
                    owned[self._owners[part.descriptor.segment_id]] += part.descriptor.nbytes
        return owned

    def release(self, process: Process, keys: Iterable[tuple[bytes, int]]) -> None:
        """End leases of a process.

        Raises:
            ProtocolError: It has no such lease; those before it have ended.
        """
        for key in keys:
            self._carry_out(self._table.release(key, process))

    def remove_segments(self, worker: Process, segment_ids: Iterable[bytes]) -> None:
        """Let go of segments that a worker's arena has given back.

        Raises:
            ProtocolError: One is not its own, or is leased.
        """
        for segment_id in segment_ids:
            self._carry_out(self._table.remove_segment(worker, segment_id))

    def end_worker(self, worker: Process, pid: int) -> None:
        """End what a worker held; it and its forked children are gone."""
        if self._workers.get(pid) == worker:  # a process that was started since may have its pid
            del self._workers[pid]
        self._frees.pop(worker, None)
        self._carry_out(self._table.end_process(worker))

    def take_messages(self, workers: Iterable[Process]) -> Iterator[tuple[Process, Free | Gone]]:
        """What workers are to be told, of all that has happened since the last call.

        Args:
            workers: Those that live.
        """
        self.remove_segments(DRIVER, self.handover.take_released())
        frees, self._frees = self._frees, defaultdict(list)
        drops, self._drops = self._drops, []
        for worker in workers:
            if worker in frees:
                yield worker, Free(frees[worker])
            if drops:
                yield worker, Gone(drops)

    @property
    def table(self) -> LeaseTable:
        """For statistics and tests."""
        return self._table

    def _worker(self, pid: int) -> Process:
        worker = self._workers.get(pid)
        if worker is None:
            raise ProtocolError(f"process {pid} is not a worker of this hub")
        return worker

    def _accept(self, worker: Process, descriptor: Descriptor) -> Lease:
        if self._table.is_published(descriptor):
            self._table.grant(descriptor, DRIVER, by=worker)
        else:
            self._table.publish(worker, descriptor, DRIVER)
        return Lease(descriptor, self._segments[descriptor.segment_id], self._end)

    def _add_own(self, segment_id: bytes, index: int, fd: int, nbytes: int) -> None:
        self._table.add_segment(DRIVER, segment_id, nbytes)
        file = SegmentFile(fd, nbytes)
        if not self._closed:
            self._files[segment_id] = file
            self._segments[segment_id] = OwnSegment(index)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, lease_table.Free):
                if effect.owner == DRIVER:
                    arena.unpublish(effect.generation)
                else:
                    self._frees[effect.owner].append(effect.generation)
            elif isinstance(effect, lease_table.Reduce):
                self._reduce(effect)
            else:
                self._drops.append(effect.segment_id)
                del self._segments[effect.segment_id], self._files[effect.segment_id]
                self._owners.pop(effect.segment_id, None)

    def _reduce(self, effect: lease_table.Reduce) -> None:
        segment = self._segments[effect.segment_id]
        assert isinstance(segment, PeerSegment)  # the driver, which owns the others, lives
        if self._files[effect.segment_id].reduce(effect.ranges):
            segment.map_again()
            self._drops.append(effect.segment_id)  # workers that read in it later map what is left
        else:
            self._table.not_reduced(effect.segment_id)
