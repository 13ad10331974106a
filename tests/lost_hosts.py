"""Hosts that can be lost, without hosts: what workers hand over lies in segments that say so."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest

from zfast.errors import ResultLostError
from zfast.runner.dispatcher import Dispatcher
from zfast.runner.lease_desk import LeaseDesk
from zfast.sharing.handover import Parcel
from zfast.sharing.segments import Lease, Segment

WHY = "a result lay on host A, which was lost"


class OfAnotherHost(Segment):
    """A peer's segment, as if it lay on another host that can be lost."""

    is_remote = True
    is_lost = False

    def __init__(self, peer: Segment) -> None:
        super().__init__()
        self._peer = peer
        self.here = threading.Event()
        self.here.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self.here.wait(timeout_s)

    def view(self, lease: Lease) -> memoryview:
        self.wait()
        if self.is_lost:
            raise ResultLostError(WHY)
        return self._peer.view(lease)

    def _view(self, offset: int, nbytes: int, owner: object) -> Any:
        raise NotImplementedError


class Hosts:
    """Loses what was made so far, or what is made from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._segments: weakref.WeakSet[OfAnotherHost] = weakref.WeakSet()
        self.lose_new = False
        accept, give = LeaseDesk._accept, Dispatcher._give

        def accept_from_host(*arguments: Any) -> Lease:
            lease = accept(*arguments)
            segment = lease.segment = OfAnotherHost(lease.segment)
            segment.is_lost = self.lose_new
            self._segments.add(segment)
            return lease

        def give_or_settle(dispatcher: Dispatcher, worker: Any, job: Any, now: float) -> None:
            if any(parcel.is_lost for parcel in job.parcels):
                dispatcher._end(job, ResultLostError(WHY))
            else:
                give(dispatcher, worker, job, now)

        monkeypatch.setattr(LeaseDesk, "_accept", accept_from_host)
        monkeypatch.setattr(Dispatcher, "_give", give_or_settle)

    def lose(self, *parcels: Parcel) -> None:
        """Lose some parcels, or everything that was made so far."""
        some = [part.segment for parcel in parcels for part in parcel.parts]
        for segment in some or list(self._segments):
            segment.is_lost = True
