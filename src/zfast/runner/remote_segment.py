"""What lies on another host, as whoever leases it here sees it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from zfast.errors import ResultLostError
from zfast.runner.remote_worker import RemoteHost
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.segments import Lease, Segment


class RemoteSegment(Segment):
    """A publication of another host, or a part of one, and its bytes once they are here.

    Args:
        host: Where it lies.
        ask: Called, on any thread, when its bytes are wanted here.

    Attributes:
        host: None once it does not lie there any more: it was brought here, or lost.
        copies: Other hosts that were told to take it.
        refused: Those that could not.
        n_leases: Of this process.

    Threads: ``view``, ``is_remote`` and ``is_lost`` any; the rest the hub's.
    """

    def __init__(
        self, host: RemoteHost, descriptor: Descriptor, ask: Callable[[RemoteSegment], None]
    ) -> None:
        self.host: RemoteHost | None = host
        self.descriptor = descriptor
        self.copies: set[RemoteHost] = set()
        self.refused: set[RemoteHost] = set()
        self.n_leases = 0
        self.is_coming = False
        self._ask = ask
        self._pid = os.getpid()
        self._data: memoryview | None = None
        self._loss: str | None = None
        self._settled = threading.Event()
        self._waiting: list[Callable[[], None]] = []

    @property
    def is_remote(self) -> bool:
        """Whether its bytes are not here."""
        return self._data is None

    @property
    def is_lost(self) -> bool:
        """Whether they never will be."""
        return self._data is None and self._loss is not None

    @property
    def loss(self) -> ResultLostError:
        """What whoever wants a lost one is told."""
        return ResultLostError(
            f"a result of {self.descriptor.nbytes} bytes is lost: {self._loss}",
            hint="results that persist outlive their host",
        )

    def view(self, lease: Lease) -> memoryview:
        """Its bytes, read-only; waits for them to come. Not on the hub's thread before that.

        Raises:
            ResultLostError: Its host was lost, or this is a fork that cannot have it sent.
        """
        self.wait()
        if self._data is None:
            raise self.loss
        return self._data

    def wait(self, timeout_s: float | None = None) -> bool:
        """Have its bytes sent here, and wait until they are, or lost; False if that takes longer.

        Raises:
            ResultLostError: This process is a fork of the one that can have them sent.
        """
        if self._settled.is_set():
            return True
        if self._pid != os.getpid():
            raise ResultLostError(
                f"a result of {self.descriptor.nbytes} bytes was not here when process "
                f"{self._pid} forked this one",
                hint="read results before the fork",
            )
        self._ask(self)
        return self._settled.wait(timeout_s)

    def when_settled(self, call: Callable[[], None]) -> None:
        """Have something called once it is here, or lost."""
        self._waiting.append(call)

    def arrive(self, data: memoryview) -> None:
        """Its bytes are here."""
        self._data = data
        self._settle()

    def lose(self, cause: str) -> None:
        """They will never be here."""
        self._loss = cause
        self._settle()

    def _settle(self) -> None:
        self.is_coming = False
        self._settled.set()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
