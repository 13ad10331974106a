"""The hub's side of data on other hosts: who may read what lies there, and how it gets here.

What a worker of another host returns stays on that host. Here it is a lease like any other, on a
``RemoteSegment``. Jobs for that host name it, and map it there; for another one, that host's
foreman takes it from the first one's; and what is read here comes over the host's session, once.
What lies on this host, for jobs elsewhere, see ``zfast.runner.supplies``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from zfast.errors import ProtocolError, ResultLostError
from zfast.runner.host_peers import HostPeers
from zfast.runner.job import Job
from zfast.runner.protocol import Done, split_parcels
from zfast.runner.remote_protocol import (
    STAY_MIN_NBYTES,
    Fetch,
    Fetched,
    LetGo,
    Lies,
    Serving,
    Unfetched,
    served_as,
)
from zfast.runner.remote_segment import RemoteSegment
from zfast.runner.remote_worker import RemoteHost, RemoteWorker
from zfast.runner.supplies import Supplies
from zfast.runner.worker_handle import WorkerHandle
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.handover import Parcel
from zfast.sharing.segments import Lease

#: Segments of other hosts of which it is remembered whose they are.
MAX_OWNERS = 16_384


class RemoteData:
    """Every publication of another host that somebody here has a lease on.

    Args:
        command: Runs something on the hub's thread; at once when the hub has ended. Called from
            any thread, and by the collector at any moment.
        is_own: Whether a segment is of this host.

    Threads: the hub's.
    """

    def __init__(
        self,
        command: Callable[[Callable[[], None]], None],
        is_own: Callable[[bytes], bool],
    ) -> None:
        self._command = command
        self._is_own = is_own
        self._segments: dict[RemoteHost, dict[Descriptor, RemoteSegment]] = {}
        self._owners: dict[bytes, RemoteHost] = {}
        self._peers = HostPeers()
        self._supplies = Supplies(command, lambda host, descriptor: self._end(host, descriptor))
        self._let_go: defaultdict[RemoteHost, list[Descriptor]] = defaultdict(list)

    # ---- hosts ------------------------------------------------------------------------------

    def join(self, host: RemoteHost) -> None:
        """A host may hold data from now on."""
        self._segments[host] = {}

    def serve(self, host: RemoteHost, serving: Serving, *, guarded: bool) -> None:
        """As ``HostPeers.serve``."""
        self._peers.serve(host, serving, guarded=guarded)

    def miss(self, host: RemoteHost, message: Unfetched) -> None:
        """A host has not got what it was told to take, or was sent."""
        self._supplies.forget(host, message.descriptor)
        for other, segments in self._segments.items():
            segment = segments.get(message.descriptor)
            if segment is not None and other is not host:
                segment.copies.discard(host)
                segment.refused.add(host)
                if message.is_apart:
                    self._peers.part(host, other, message.reason)

    def retire(self, host: RemoteHost) -> None:
        """It leaves: bring what is leased there."""
        host.is_retiring = True
        for segment in list(self._segments.get(host, {}).values()):
            if segment.is_remote and not segment.is_lost:
                self.bring(segment)
            else:
                self._move_here(segment)

    def lose(self, host: RemoteHost, cause: str) -> None:
        """What lies there and is not here is lost."""
        segments = self._segments.pop(host, {})
        self._let_go.pop(host, None)
        self._owners = {id_: owner for id_, owner in self._owners.items() if owner is not host}
        for others in self._segments.values():
            for segment in others.values():
                segment.copies.discard(host)
        self._peers.lose(host)
        self._supplies.lose(host)
        for segment in segments.values():
            segment.host = None
            if segment.is_remote:
                segment.lose(cause)

    # ---- what comes -------------------------------------------------------------------------

    def receive(self, host: RemoteHost, message: Done, buffers: list[memoryview]) -> list[Parcel]:
        """A result's parcels, this process having leases on what stays on its host.

        Raises:
            ProtocolError: A descriptor is malformed or of another host's memory, or the message
                does not add up.
        """
        for descriptor in filter(None, message.shared):
            descriptor.check()
            if self._owner(descriptor.segment_id, host) is not host:
                raise ProtocolError(f"{descriptor} is not of {host.name}")
        return split_parcels(message, buffers, lambda descriptor: self._lease(host, descriptor))

    def arrive(self, host: RemoteHost, message: Fetched, buffers: list[memoryview]) -> None:
        """What was asked for is here, or its host has not got it.

        Raises:
            ProtocolError: It is not as long as was said.
        """
        segment = self._segments.get(host, {}).get(message.descriptor)
        if segment is None or not segment.is_remote:
            return  # nobody wants it any more
        if not buffers:
            segment.lose(f"host {host.name} has not got it")
        elif buffers[0].nbytes != message.descriptor.nbytes:
            raise ProtocolError(f"{buffers[0].nbytes} bytes came for {message.descriptor}")
        else:
            segment.arrive(buffers[0])
        if host.is_retiring:
            self._move_here(segment)

    def bring(self, segment: RemoteSegment) -> None:
        """Have it sent here, unless it comes already, or cannot be had."""
        wanted = segment.is_remote and not segment.is_lost and not segment.is_coming
        if wanted and segment.host is not None:
            segment.is_coming = True
            segment.host.session.post(Fetch(segment.descriptor))

    def bring_all(self, segments: Iterable[RemoteSegment], done: Callable[[], None]) -> None:
        """Have several sent here; ``done`` is called when each is here or lost."""
        left = list(segments)

        def settled() -> None:
            left.pop()
            if not left:
                done()

        for segment in list(left):
            segment.when_settled(settled)
            self.bring(segment)

    def bring_leased(self) -> None:
        """Have everything sent here that somebody has a lease on, for after the end."""
        for segments in self._segments.values():
            for segment in segments.values():
                self.bring(segment)

    @property
    def n_coming(self) -> int:
        """How many are on their way here."""
        return sum(
            segment.is_coming
            for segments in self._segments.values()
            for segment in segments.values()
        )

    @property
    def remote_nbytes(self) -> int:
        """Bytes that lie on other hosts and are leased here."""
        return sum(d.nbytes for segments in self._segments.values() for d in segments)

    # ---- what goes --------------------------------------------------------------------------

    def loss(self, job: Job) -> ResultLostError | None:
        """Why a job cannot have what it is given; None if it can."""
        for segment in _remote(job.parcels):
            if segment.is_lost:
                return segment.loss
        return None

    def absent(self, job: Job, worker: WorkerHandle) -> set[RemoteSegment]:
        """What must come here first, for a worker to be given a job."""
        return {
            segment
            for segment in _remote(job.parcels)
            if segment.is_remote and not self._reaches(worker, segment)
        }

    def locate(self, job: Job, worker: WorkerHandle) -> None:
        """Tell a worker's host where it finds what a job names, or send it."""
        if not isinstance(worker, RemoteWorker):
            return
        for lease in _leases(job.parcels):
            segment = lease.segment
            if not self._stays(worker, lease):
                continue
            # What was let go of before must not be said after what is sent now.
            self.flush()
            if not isinstance(segment, RemoteSegment):
                self._supplies.send(worker.host, lease)
            elif (
                segment.host is not None
                and segment.host is not worker.host
                and worker.host not in segment.copies
            ):
                segment.copies.add(worker.host)
                served = served_as(segment.host.session_id, segment.descriptor)
                peer_id = self._peers.peer_id(segment.host)
                worker.host.session.post(Lies(segment.descriptor, peer_id, served))

    def stays(self, worker: WorkerHandle) -> Callable[[Lease], bool]:
        """Says of leases whether a job for a worker only names what they are on."""
        return lambda lease: self._stays(worker, lease)

    def _stays(self, worker: WorkerHandle, lease: Lease) -> bool:
        if isinstance(lease.segment, RemoteSegment):
            return self._reaches(worker, lease.segment)
        return worker.is_local or lease.descriptor.nbytes >= STAY_MIN_NBYTES

    def nbytes_on(self, parcels: Iterable[Parcel]) -> dict[RemoteHost, int]:
        """How many bytes of some parcels lie on each host."""
        nbytes: defaultdict[RemoteHost, int] = defaultdict(int)
        for lease in _leases(parcels) if self._segments else ():
            segment = lease.segment
            if isinstance(segment, RemoteSegment):
                hosts = segment.copies | ({segment.host} if segment.host is not None else set())
            else:
                hosts = self._supplies.hosts(lease)
            for host in hosts:
                nbytes[host] += lease.descriptor.nbytes
        return nbytes

    def flush(self) -> None:
        """Tell hosts which leases have ended since the last call."""
        let_go, self._let_go = self._let_go, defaultdict(list)
        for host, descriptors in let_go.items():
            host.session.post(LetGo(descriptors))

    def close(self) -> None:
        """The hub ends: what is not here is lost."""
        for host in list(self._segments):
            self.lose(host, "its flow run is over")

    # ---- leases -----------------------------------------------------------------------------

    def _owner(self, segment_id: bytes, claimant: RemoteHost) -> RemoteHost | None:
        """Whose a segment is: the first to name it; None for this host's own."""
        if self._is_own(segment_id):
            return None
        owner = self._owners.setdefault(segment_id, claimant)
        if len(self._owners) > MAX_OWNERS:
            del self._owners[next(iter(self._owners))]
        return owner

    def _lease(self, host: RemoteHost, descriptor: Descriptor) -> Lease:
        segments = self._segments.setdefault(host, {})
        segment = segments.get(descriptor)
        if segment is None:
            segment = segments[descriptor] = RemoteSegment(host, descriptor, self._asked)
        segment.n_leases += 1
        held = segment  # not by the lease alone: its end is told after it
        return Lease(descriptor, segment, lambda _: self._command(lambda: self._release(held)))

    def _asked(self, segment: RemoteSegment) -> None:
        self._command(lambda: self.bring(segment))

    def _release(self, segment: RemoteSegment) -> None:
        segment.n_leases -= 1
        if segment.host is not None:
            self._let_go[segment.host].append(segment.descriptor)
        if not segment.n_leases:
            self._forget(segment)

    def _move_here(self, segment: RemoteSegment) -> None:
        """Its host need not keep it."""
        if segment.host is not None:
            self._let_go[segment.host] += [segment.descriptor] * segment.n_leases
            self._forget(segment)

    def _end(self, host: RemoteHost, descriptor: Descriptor) -> None:
        if host in self._segments:
            self._let_go[host].append(descriptor)

    def _forget(self, segment: RemoteSegment) -> None:
        for host in segment.copies:
            self._end(host, segment.descriptor)
        segment.copies.clear()
        if segment.host is not None:
            self._segments[segment.host].pop(segment.descriptor, None)
            segment.host = None

    def _reaches(self, worker: WorkerHandle, segment: RemoteSegment) -> bool:
        """Whether a worker's host has a publication, or can take it from where it lies."""
        host = segment.host
        if host is None or not isinstance(worker, RemoteWorker):
            return False
        if host is worker.host:
            return True
        return worker.host not in segment.refused and self._peers.reaches(worker.host, host)


def _leases(parcels: Iterable[Parcel]) -> Iterator[Lease]:
    for parcel in parcels:
        for part in parcel.parts:
            if isinstance(part, Lease):
                yield part


def _remote(parcels: Iterable[Parcel]) -> Iterator[RemoteSegment]:
    for lease in _leases(parcels):
        if isinstance(lease.segment, RemoteSegment):
            yield lease.segment
