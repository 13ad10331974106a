"""Deliveries: what a hub says to the workers of another host, each one's in order.

A job that names data of a third host waits at its foreman until they are there, and what is for
the same worker waits behind it. Where they cannot be had the job goes back to the hub.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from zfast.errors import ProtocolError
from zfast.runner.control import Buffers
from zfast.runner.host_data import HostData
from zfast.runner.hub_socket import HubSocket
from zfast.runner.protocol import HUB_MESSAGES, AttemptId, Recall, Run
from zfast.sharing.descriptor import Descriptor

_RUN, _RECALL = HUB_MESSAGES.kinds[Run], HUB_MESSAGES.kinds[Recall]


@dataclass(slots=True, eq=False)
class _Delivery:
    """A message for a worker; ``run`` is what it says if it is a job, ``missing`` its data."""

    kind: int
    body: bytes
    buffers: Buffers
    run: Run | None
    missing: set[Descriptor]


class Deliveries:
    """Threads: the foreman's.

    Args:
        socket: To the workers.
        data: Of this host.
        give_back: Called with a worker and an attempt that it will not begin.
    """

    def __init__(
        self, socket: HubSocket, data: HostData, give_back: Callable[[bytes, AttemptId], None]
    ) -> None:
        self._socket = socket
        self._data = data
        self._give_back = give_back
        self._waiting: defaultdict[bytes, deque[_Delivery]] = defaultdict(deque)

    def put(self, worker: bytes, kind: int, body: bytes, buffers: Buffers) -> None:
        """Deliver a message, now or when what is before it, and its data, are there.

        Raises:
            ProtocolError: It is malformed.
        """
        if kind == _RECALL and self._take_back(worker, kind, body):
            return
        delivery = _Delivery(kind, body, buffers, None, set())
        if kind == _RUN:
            run = HUB_MESSAGES.decode(kind, body)
            assert isinstance(run, Run)
            named = set(filter(None, run.shared))
            delivery.run = run
            delivery.missing = {item for item in named if self._data.find(item) is None}
        self._waiting[worker].append(delivery)
        for descriptor in delivery.missing.copy():
            self._data.want(descriptor, lambda d=descriptor: self._settled(worker, delivery, d))  # type: ignore[misc]
        self._deliver(worker)

    def forget(self, worker: bytes) -> None:
        """A worker is gone."""
        self._waiting.pop(worker, None)

    def _settled(self, worker: bytes, delivery: _Delivery, descriptor: Descriptor) -> None:
        delivery.missing.discard(descriptor)
        if self._data.find(descriptor) is None:
            delivery.missing.clear()  # it goes back, when it is its turn
        self._deliver(worker)

    def _deliver(self, worker: bytes) -> None:
        waiting = self._waiting.get(worker)
        while waiting and not waiting[0].missing:
            delivery = waiting.popleft()
            if delivery.run is None:
                self._socket.send_raw(worker, delivery.kind, delivery.body, delivery.buffers)
            else:
                self._hand_out(worker, delivery.run, delivery.buffers)
        if not waiting:
            self._waiting.pop(worker, None)

    def _hand_out(self, worker: bytes, run: Run, buffers: Buffers) -> None:
        shared: list[Descriptor | None] = []
        rest, travelling = iter(buffers), []
        for descriptor in run.shared:
            here = next(rest, None) if descriptor is None else self._data.find(descriptor)
            if here is None:
                if descriptor is not None:
                    self._data.miss(descriptor, "it is not there")
                self._give_back(worker, run.attempt)
                return
            shared.append(here if isinstance(here, Descriptor) else None)
            if not isinstance(here, Descriptor):
                travelling.append(here)
        run = msgspec.structs.replace(run, shared=shared)
        try:
            self._data.desk.grant(worker, run)
        except ProtocolError:
            self._give_back(worker, run.attempt)
            raise
        self._socket.send(worker, run, travelling)

    def _take_back(self, worker: bytes, kind: int, body: bytes) -> bool:
        """Whether a job that is recalled still waited here."""
        recall = HUB_MESSAGES.decode(kind, body)
        assert isinstance(recall, Recall)
        waiting = self._waiting.get(worker, deque())
        for delivery in waiting:
            if delivery.run is not None and delivery.run.attempt == recall.attempt:
                waiting.remove(delivery)
                self._give_back(worker, recall.attempt)
                self._deliver(worker)
                return True
        return False
