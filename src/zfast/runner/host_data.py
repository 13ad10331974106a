"""A foreman's data: what its workers made and the hub leases, and copies of other hosts'.

Its workers share memory through a lease desk, as a hub's own do. What they return stays here; the
hub is told of it by descriptors, and says when nobody needs it any more. Peers take what they need
from the data endpoint, and this host from theirs.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from zfast import arena
from zfast.errors import TransportError, ZfastError
from zfast.runner.commands import CommandQueue
from zfast.runner.control import ControlMessage
from zfast.runner.data_client import DataClient, DataPeer
from zfast.runner.data_endpoint import DataEndpoint
from zfast.runner.data_room import Room
from zfast.runner.data_server import DataServer
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.protocol import Done, join_parcels
from zfast.runner.remote_protocol import (
    STAY_MIN_NBYTES,
    Fetch,
    Fetched,
    LetGo,
    Lies,
    Peer,
    Peers,
    Serving,
    Supply,
    Unfetched,
    served_as,
)
from zfast.runner.session import Session
from zfast.sharing import exchange
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.segments import Lease

logger = logging.getLogger("zfast.worker")


@dataclass(frozen=True, slots=True)
class _Place:
    """A peer that has something, and what it is called there."""

    peer_id: bytes
    served_as: Descriptor


@dataclass(slots=True)
class _Arrival:
    """A copy that is on its way here, from a peer or from memory, and who waits for it."""

    place: _Place | None
    waiting: list[Callable[[], None]] = field(default_factory=list)


class HostData:
    """The data of one session. Threads: the foreman's.

    Args:
        session: With the hub.
        session_id: Its id, a secret between this host and the hub.
        poller: Woken when a worker or a peer asks for something, or a lease ends.
        folder: Of this foreman alone, where workers exchange segments.
        endpoint: Where peers may take data.

    Raises:
        ConfigError, TransportError: The endpoint cannot be bound.
    """

    def __init__(
        self,
        session: Session,
        session_id: bytes,
        poller: zmq.Poller,
        folder: Path,
        endpoint: DataEndpoint,
    ) -> None:
        url, pair = endpoint.choose(folder)
        self._session = session
        self._session_id = session_id
        self._poller = poller
        self._commands = CommandQueue()
        self.desk = LeaseDesk(self._commands.put, shared=exchange.is_supported())
        self._kept: defaultdict[Descriptor, list[Lease]] = defaultdict(list)
        self._served: dict[Descriptor, Descriptor] = {}
        self._copies: dict[Descriptor, Lease | memoryview] = {}
        self._places: dict[Descriptor, _Place | None] = {}
        self._arriving: dict[Descriptor, _Arrival] = {}
        self._peers: dict[bytes, Peer] = {}
        self._room = Room()
        self._client = DataClient(pair, poller)
        self._server: DataServer | None = None
        poller.register(self._commands.fd, zmq.POLLIN)
        self.desk.open(folder / exchange.FILE_NAME, poller)
        if url is not None:
            self._server = DataServer(url, pair, self._serve, poller)
            seen = endpoint.as_seen_by_others(self._server.endpoint)
            session.post(Serving(seen, self._server.public_key))

    # ---- what lies here ---------------------------------------------------------------------

    @property
    def n_kept(self) -> int:
        """Publications of this host that the hub leases."""
        return len(self._kept)

    def keep(
        self, worker: bytes, message: Done, buffers: list[memoryview]
    ) -> tuple[Done, list[bytes | memoryview]]:
        """Keep the large parts of a result; what is to be passed on of it.

        Raises:
            ProtocolError: The message does not add up.
            ArenaError, OSError: What is to be passed on cannot be read.
        """
        parcels = self.desk.receive(worker, message, buffers)
        counts, shared, travelling = join_parcels(parcels, _stays)
        for parcel in parcels:
            for part in parcel.parts:
                if isinstance(part, Lease) and _stays(part):
                    self._kept[part.descriptor].append(part)
                    self._served[served_as(self._session_id, part.descriptor)] = part.descriptor
        return Done(message.attempt, counts, shared), travelling

    def find(self, descriptor: Descriptor) -> Descriptor | memoryview | None:
        """What this host's workers can map for it, or its bytes; None if it is not here."""
        if descriptor in self._kept:
            return descriptor
        copy = self._copies.get(descriptor)
        return copy.descriptor if isinstance(copy, Lease) else copy

    def _read(self, descriptor: Descriptor) -> memoryview | None:
        """Bytes that this host keeps; they are leased as long as the view lives."""
        leases = self._kept.get(descriptor)
        return leases[0].view() if leases else None

    def _serve(self, name: Descriptor) -> memoryview | None:
        descriptor = self._served.get(name)
        return None if descriptor is None else self._read(descriptor)

    # ---- what comes from peers --------------------------------------------------------------

    def want(self, descriptor: Descriptor, settled: Callable[[], None]) -> None:
        """Have something brought here; ``settled`` is called once ``find`` tells what came of it.

        That is later, not in this call.
        """
        arrival = self._arriving.get(descriptor)
        if arrival is None:
            place = self._places.get(descriptor)
            arrival = self._arriving[descriptor] = _Arrival(place)
            peer = self._peers.get(place.peer_id) if place is not None else None
            if place is None or peer is None:
                self._commands.put(lambda: self._fail(descriptor, "nobody here knows where it is"))
            else:
                self._client.fetch(
                    place.served_as,
                    DataPeer(peer.endpoint, peer.public_key),
                    lambda outcome: self._arrived(descriptor, outcome),
                )
        arrival.waiting.append(settled)

    def miss(self, descriptor: Descriptor, reason: str, *, is_apart: bool = False) -> None:
        """Tell the hub that something is not here, of which it thinks that it is."""
        self._session.post(Unfetched(descriptor, reason, is_apart))

    def _arrived(self, descriptor: Descriptor, outcome: arena.Block | ZfastError) -> None:
        if descriptor not in self._arriving:
            return
        if isinstance(outcome, TransportError):
            self._fail(descriptor, outcome.message, is_apart=True)
        elif isinstance(outcome, ZfastError):
            self._fail(descriptor, outcome.message)
        else:
            copy = self._publish(outcome, descriptor.nbytes)
            if copy is None:
                self._fail(descriptor, "it cannot be shared there")
            else:
                self._copies[descriptor] = copy
                self._settle(descriptor)

    def _publish(self, block: arena.Block, nbytes: int) -> Lease | None:
        try:
            copy = self.desk.handover.publish(block, nbytes)
        except (ZfastError, OSError) as error:  # such as too many open files
            logger.warning("%d bytes cannot be shared: %s", nbytes, error)
            return None
        self._commands.run()  # the copy is the desk's, too, by now
        return copy

    def _fail(self, descriptor: Descriptor, reason: str, *, is_apart: bool = False) -> None:
        self.miss(descriptor, reason, is_apart=is_apart)
        self._places.pop(descriptor, None)  # the hub says nothing more of it
        self._settle(descriptor)

    def _settle(self, descriptor: Descriptor) -> None:
        arrival = self._arriving.pop(descriptor, None)
        for settled in arrival.waiting if arrival is not None else ():
            settled()

    def _give_up(self, descriptor: Descriptor) -> None:
        place = self._arriving[descriptor].place
        if place is not None:
            self._client.cancel(place.served_as)
        self._settle(descriptor)

    # ---- the hub's word ---------------------------------------------------------------------

    def take(self, message: ControlMessage, buffers: list[memoryview]) -> bool:
        """Take what the hub says; False if it is not about data.

        Raises:
            ConfigError: A peer's key is none.
        """
        if isinstance(message, Lies):
            place = _Place(message.peer_id, message.served_as)
            self._places[message.descriptor] = place
        elif isinstance(message, LetGo):
            for descriptor in message.descriptors:
                self._let_go(descriptor)
        elif isinstance(message, Supply):
            self._supply(message.descriptor, *buffers)
        elif isinstance(message, Fetch):
            self._send(message.descriptor)
        elif isinstance(message, Peers):
            self._meet(message.peers)
        else:
            return False
        return True

    def _send(self, descriptor: Descriptor) -> None:
        try:
            data = self._read(descriptor)
        except (ZfastError, OSError) as error:
            logger.warning("%s cannot be read: %s", descriptor, error)
            data = None
        self._session.post(Fetched(descriptor), [] if data is None else [data])

    def _let_go(self, descriptor: Descriptor) -> None:
        leases = self._kept.get(descriptor)
        if leases is not None:
            leases.pop()
            if not leases:
                del self._kept[descriptor]
                self._served.pop(served_as(self._session_id, descriptor), None)
            return
        self._places.pop(descriptor, None)
        self._copies.pop(descriptor, None)
        if descriptor in self._arriving:
            self._give_up(descriptor)

    def _supply(self, descriptor: Descriptor, data: memoryview) -> None:
        self._places[descriptor] = None
        copied = self._room.copy_in(data)
        if copied.done():
            self._supplied(descriptor, data, copied)
            return
        arrival = self._arriving[descriptor] = _Arrival(None)

        def supplied() -> None:
            if self._arriving.get(descriptor) is arrival:  # not let go of meanwhile
                self._supplied(descriptor, data, copied)

        copied.add_done_callback(lambda _: self._commands.put(supplied))

    def _supplied(
        self, descriptor: Descriptor, data: memoryview, copied: Future[arena.Block]
    ) -> None:
        if isinstance(copied.exception(), ZfastError):
            logger.info("%d bytes are sent to each worker: %s", data.nbytes, copied.exception())
            self._copies[descriptor] = data
        else:
            self._copies[descriptor] = self._publish(copied.result(), data.nbytes) or data
        self._settle(descriptor)

    def _meet(self, peers: list[Peer]) -> None:
        self._peers = {peer.peer_id: peer for peer in peers}
        if self._server is not None:
            self._server.admit(peer.public_key for peer in peers if peer.public_key)
        for descriptor, arrival in list(self._arriving.items()):
            if arrival.place is not None and arrival.place.peer_id not in self._peers:
                self._give_up(descriptor)

    # ---- its turns --------------------------------------------------------------------------

    @property
    def next_turn(self) -> float:
        """When ``turn`` must be called at the latest, by the monotonic clock."""
        return self._client.next_turn

    def turn(self) -> None:
        """Serve workers and peers, and see to what comes and to leases that have ended."""
        self._commands.run()
        self.desk.serve()
        if self._server is not None:
            self._server.serve()
        self._client.turn()

    def close(self) -> None:
        """Hang up on everyone, and let go of everything."""
        self._client.close()
        if self._server is not None:
            self._server.close()
        self._room.close()
        self._arriving.clear()
        self._kept.clear()
        self._copies.clear()
        self.desk.close()
        self._poller.unregister(self._commands.fd)
        self._commands.finish()


def _stays(lease: Lease) -> bool:
    return lease.descriptor.nbytes >= STAY_MIN_NBYTES
