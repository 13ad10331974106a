"""ZfastFuture: a task run's future whose result stays where it is until somebody asks for it."""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.client.schemas.objects import State, StateDetails
from prefect.futures import PrefectConcurrentFuture
from prefect.results import ResultRecord  # type: ignore[attr-defined]

from zfast.codec import decode
from zfast.deadline import Deadline
from zfast.errors import ResultLostError, WorkerError
from zfast.prefect.crashes import crashed, crashed_by
from zfast.prefect.internals.known_results import know_result
from zfast.sharing.handover import Parcel

if TYPE_CHECKING:
    from zfast.prefect.making import Making
    from zfast.sharing.handover import Handover

logger = logging.getLogger("zfast.prefect")

#: Callbacks of each future that are Prefect's own: it wakes those in ``wait`` and ``as_completed``.
N_NOTIFIERS = 1


Callback = Callable[[concurrent.futures.Future[Any]], object]


class _Outcome(concurrent.futures.Future[Any]):
    """A future that forgets its callbacks once they were called, and that nobody cancels.

    The standard one keeps them, and so would be in a reference cycle with the Prefect future around
    it: a result's memory would be free when the collector comes by, and not when it is let go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()  # who tires of waiting does not end the task run
        self._callbacks: list[Callback] | None = []
        self._callbacks_lock = threading.Lock()

    def add_done_callback(self, fn: Callback) -> None:
        """Call ``fn`` with this future when it is done, now if it is."""
        with self._callbacks_lock:
            if self._callbacks is not None:
                self._callbacks.append(fn)
                return
        self._call([fn])

    def set_result(self, result: Any) -> None:
        """Complete the future."""
        call_others = self.set_result_and_notify(result)
        if call_others is not None:
            call_others()

    def set_result_and_notify(self, result: Any) -> Callable[[], None] | None:
        """Complete the future and wake those who wait; what calls the other callbacks, if any."""
        with self._callbacks_lock:
            super().set_result(result)
            callbacks, self._callbacks = self._callbacks or [], None
        self._call(callbacks[:N_NOTIFIERS])
        others = callbacks[N_NOTIFIERS:]
        return partial(self._call, others) if others else None

    def _call(self, callbacks: list[Callback]) -> None:
        for callback in callbacks:
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

    def __init__(self, task_run_id: UUID, flow_run_id: UUID | None = None) -> None:
        super().__init__(task_run_id, _Outcome())
        self._flow_run_id = flow_run_id
        self._parcel: Parcel | None = None
        self._handover: Handover | None = None
        #: How to have the parcel again, as long as it can be lost.
        self.making: Making | None = None
        self._decoding = threading.Lock()

    @property
    def details(self) -> StateDetails:
        """Whose States of its task run are, for those that are made here."""
        return StateDetails(task_run_id=self.task_run_id, flow_run_id=self._flow_run_id)

    def settle(self, state: State[Any]) -> None:
        """Complete the future with a State made here."""
        self.wrapped_future.set_result(state)

    def settle_parcel(
        self,
        parcel: Parcel,
        handover: Handover,
        making: Making | None = None,
    ) -> Callable[[], None] | None:
        """Complete the future with a State as it came from a worker of ``handover``'s hub.

        Args:
            making: How to have it again should it be lost; None if it cannot be.

        Returns:
            What calls those who want to hear of it, which may take them long; None if nobody does.
        """
        self._parcel, self._handover, self.making = parcel, handover, making
        if making is not None:
            making.keep_in(self._renew)
        return cast("_Outcome", self.wrapped_future).set_result_and_notify(None)

    def _renew(self, parcel: Parcel) -> None:
        self._parcel = parcel

    def parcel_for(self, handover: Handover) -> Parcel | None:
        """The State as it came, if it can be sent on through ``handover`` as it is."""
        return self._parcel if handover is self._handover else None

    @property
    def state(self) -> State[Any]:
        """The task run's state: its final one once it has ended, else what the API knows.

        A result that was lost is made again, and waited for.
        """
        if self.wrapped_future.done():
            self._decode(Deadline(None))
        return super().state

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """The task run's result, waited for and mapped. See ``PrefectFuture.result``."""
        deadline = Deadline(None if timeout is None else max(0.0, timeout))
        self.wait(timeout)
        if not (self.wrapped_future.done() and self._decode(deadline)):
            raise TimeoutError(
                f"Task run {self.task_run_id} did not complete within {timeout} seconds"
            )
        state = self._final_state
        if state is not None and state.is_completed() and isinstance(state.data, ResultRecord):
            self.wait(0)  # raises if the flow run was suspended meanwhile
            return state.data.result  # Prefect would ask another thread's event loop for it
        return super().result(None, raise_on_failure)

    def _decode(self, deadline: Deadline) -> bool:
        """Have the final State; False if it did not come here, or was lost and not made again,
        in time.
        """
        while self._final_state is None:
            parcel = self._parcel
            try:
                if parcel is not None and not parcel.wait(deadline.left()):
                    return False
                with self._decoding:  # what it needs is here: nobody waits for long
                    if self._final_state is None:
                        self._final_state = self._open(parcel)
                        self.making = None  # it cannot be lost any more
                break
            except ResultLostError as error:
                loss = error.with_traceback(None)
            again = self._make_again(loss, deadline)
            if again is None:
                return False
            if again is parcel or isinstance(again, WorkerError):
                # Why it was not made again may be another matter, such as the runner's end.
                lost = again if isinstance(again, ResultLostError) else loss
                with self._decoding:
                    self._final_state = self._final_state or crashed_by(lost, self.details)
        return True

    def _open(self, parcel: Parcel | None) -> State[Any]:
        if parcel is None:
            return cast("State[Any]", self.wrapped_future.result())
        try:
            state = cast("State[Any]", decode(parcel.open()))
        except ResultLostError:
            raise
        except Exception as error:
            return crashed(f"The result cannot be decoded: {error}", error, self.details)
        know_result(state)
        return state

    def _make_again(self, loss: ResultLostError, deadline: Deadline) -> Parcel | WorkerError | None:
        """The parcel made again, or why not; None if that takes too long."""
        making = self.making
        if making is None:
            return loss
        made: queue.SimpleQueue[Parcel | WorkerError] = queue.SimpleQueue()
        making.ask(loss, made.put)
        try:
            return made.get(timeout=deadline.left())
        except queue.Empty:
            return None
