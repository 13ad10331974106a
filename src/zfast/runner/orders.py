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
        # To take an order out is to own it: one step, so that only one thread can.
        self._orders: dict[AttemptId, Order] = {}

    def put(self, item: Order | WarmUp | None) -> None:
        """Queue something; None is the end."""
        if isinstance(item, Order):
            self._orders[item.attempt] = item
        self._queue.put(item)

    def take_back(self, attempt: AttemptId) -> bool:
        """Take an order out; False if it was begun."""
        return self._orders.pop(attempt, None) is not None

    def get(self) -> Order | WarmUp | None:
        """What is next, waited for; None at the end."""
        while True:
            item = self._queue.get()
            if not isinstance(item, Order) or self._orders.pop(item.attempt, None) is not None:
                return item
