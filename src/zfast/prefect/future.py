"""ZfastFuture: a task run's future whose result stays where it is until somebody asks for it."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Crashed

from zfast.codec import decode
from zfast.sharing.handover import Parcel

if TYPE_CHECKING:
    from zfast.sharing.handover import Handover

logger = logging.getLogger("zfast.prefect")


class _Outcome(concurrent.futures.Future[Any]):
    """A future that forgets its callbacks once they were called.

    The standard one keeps them, and so would be in a reference cycle with the Prefect future around
    it: a result's memory would be free when the collector comes by, and not when it is let go.
    """

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[concurrent.futures.Future[Any]], object]] | None = []
        self._callbacks_lock = threading.Lock()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call ``fn`` with this future when it is done, now if it is."""
        with self._callbacks_lock:
            if self._callbacks is not None:
                self._callbacks.append(fn)
                return
        self._call(fn)

    def set_result(self, result: Any) -> None:
        """Complete the future."""
        super().set_result(result)
        with self._callbacks_lock:
            callbacks, self._callbacks = self._callbacks or [], None
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        try:
            callback(self)
        except Exception:
            logger.exception("a callback of a task run's future failed")


class ZfastFuture(PrefectConcurrentFuture[Any]):
    """The future of a task run on a zfast worker. Threads: any.

    Its final State is decoded, and the memory of its result mapped, when ``state`` or ``result`` is
    asked for; ``wait`` and tasks that take the future do not. The result's memory is free again
    when the future and all that was read from it are gone, and no task needs it.
    """

    def __init__(self, task_run_id: UUID) -> None:
        super().__init__(task_run_id, _Outcome())
        self._parcel: Parcel | None = None
        self._handover: Handover | None = None
        self._decoding = threading.Lock()

    def settle(self, state: State[Any]) -> None:
        """Complete the future with a State made here."""
        self.wrapped_future.set_result(state)

    def settle_parcel(self, parcel: Parcel, handover: Handover) -> None:
        """Complete the future with a State as it came from a worker of ``handover``'s hub."""
        self._parcel, self._handover = parcel, handover
        self.wrapped_future.set_result(parcel)

    def parcel_for(self, handover: Handover) -> Parcel | None:
        """The State as it came, if it can be sent on through ``handover`` as it is."""
        return self._parcel if handover is self._handover else None

    @property
    def state(self) -> State[Any]:
        """The task run's state: its final one once it has ended, else what the API knows."""
        if self._final_state is None and self.wrapped_future.done():
            with self._decoding:
                if self._final_state is None:
                    self._final_state = self._decode()
        return super().state

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """The task run's result, waited for and mapped. See ``PrefectFuture.result``."""
        self.wait(timeout)
        if not self.wrapped_future.done():
            raise TimeoutError(
                f"Task run {self.task_run_id} did not complete within {timeout} seconds"
            )
        _ = self.state  # decoded now, in the thread that wants it
        return super().result(None, raise_on_failure)

    def _decode(self) -> State[Any]:
        outcome: object = self.wrapped_future.result()
        if not isinstance(outcome, Parcel):
            return cast("State[Any]", outcome)
        try:
            return cast("State[Any]", decode(outcome.open()))
        except Exception as error:
            return Crashed(message=f"The result cannot be decoded: {error}", data=error)
