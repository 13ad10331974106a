"""What a worker's main thread is to do: jobs, in order, that can be taken back until they begin."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from zfast.runner.job import Blob
from zfast.runner.protocol import AttemptId
from zfast.sharing.handover import Parcel


@dataclass(frozen=True, slots=True)
class Order:
    """A job as the worker has it. See ``zfast.runner.job.Job``."""

    attempt: AttemptId
    serial: int
    code: Blob
    context: Blob
    parcels: list[Parcel]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What to get ready for."""

    codes: list[Blob]
    context: Blob


class WaitingOrders:
    """What the main thread is to do, in order. Orders can be taken back until it has begun them."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Order | WarmUp | None] = queue.SimpleQueue()
        # To take an order out is to own it: one step, so that only one thread can. By serial: an
        # attempt that was taken back may come once more while its first order is still queued.
        self._orders: dict[int, Order] = {}

    def put(self, item: Order | WarmUp | None) -> None:
        """Queue something; None is the end."""
        if isinstance(item, Order):
            self._orders[item.serial] = item
        self._queue.put(item)

    def take_back(self, attempt: AttemptId) -> bool:
        """Take an order out; False if it was begun."""
        waiting = list(self._orders.values())  # one step, whatever the main thread does
        serials = [order.serial for order in waiting if order.attempt == attempt]
        return any(self._orders.pop(serial, None) is not None for serial in serials)

    def get(self) -> Order | WarmUp | None:
        """What is next, waited for; None at the end."""
        while True:
            item = self._queue.get()
            if not isinstance(item, Order) or self._orders.pop(item.serial, None) is not None:
                return item
