"""Reactions to states: wait for one, be called for each, run something when one comes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from zfast.errors import ChannelClosedError, RecvTimeoutError, ZfastError
from zfast.events.event import Event, StateEvent
from zfast.events.subscription import Subscription

logger = logging.getLogger("zfast.events")

#: So often a reaction sees whether all publishers have been joined, until they have.
JOINED_S = 0.05

T = TypeVar("T")


def wait_for_state(
    run: object = None,
    *,
    flow: str | None = None,
    task: str | None = None,
    states: Sequence[str] = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"),
    timeout: float | None = None,
    **subscription: Any,
) -> StateEvent:
    """Wait until a run is in one of some states, and is told so; it may be already.

    Args:
        run: Its id, or that of the flow run whose task run it may be.
        flow: The name of its flow.
        task: The name of its task.
        states: Names or types.
        timeout: Seconds; None waits for ever.
        subscription: Arguments of ``subscribe``, such as ``environment``.

    Raises:
        RecvTimeoutError: It was in none of them in time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with Subscription(
        **_filters(run=run, flow=flow, task=task, states=states), **subscription
    ) as events:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                event = events.recv(left)
            except RecvTimeoutError as error:
                raise RecvTimeoutError(
                    f"no run was in {' or '.join(states)} in {timeout:g} s",
                    hint="are its states broadcast? 'zfast watch' shows what is",
                ) from error
            # A flow run's own id also matches its tasks: then the run itself is meant.
            if isinstance(event, StateEvent) and (
                run is None or task is not None or event.run_id == str(run)
            ):
                return event


class Reaction:
    """Something that goes on until it is stopped, on a thread of its own. A context manager."""

    def __init__(self, subscription: Subscription, react: Callable[[Event], None]) -> None:
        self._subscription = subscription
        self._react = react
        self._joined = threading.Event()
        self._error: ZfastError | None = None
        self._thread = threading.Thread(target=self._run, name="zfast-reaction", daemon=True)
        self._thread.start()

    def stop(self, timeout: float | None = 5.0) -> None:
        """End it, after the reaction under way; not from within one."""
        self._subscription.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def wait_joined(self, timeout: float = 5.0) -> None:
        """Wait until what happens now will be reacted to.

        Raises:
            RecvTimeoutError: A publisher does not answer in time; it may be waited for again.
            HandshakeError, AccessDeniedError: A relay refuses us.
        """
        if not self._joined.wait(timeout):
            raise RecvTimeoutError("a publisher does not answer")
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Reaction:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        with self._subscription as events:
            try:
                while True:
                    event = self._next(events)
                    if event is None:
                        continue
                    try:
                        self._react(event)
                    except Exception:
                        logger.exception("a reaction to %s failed", _describe(event))
            except ChannelClosedError:
                pass  # it is to stop
            except ZfastError as error:
                self._error = error
                logger.error("nothing is reacted to any more: %s", error)
            finally:
                self._joined.set()

    def _next(self, events: Subscription) -> Event | None:
        """The next event, if it comes before it is time to see whether all have been joined."""
        if self._joined.is_set():
            return events.recv()
        if events.is_joined:
            self._joined.set()
        # A publisher that does not answer yet keeps nobody from what others say.
        with contextlib.suppress(RecvTimeoutError):
            return events.recv(JOINED_S)
        return None


def on_event(callback: Callable[[Event], object], **subscription: Any) -> Reaction:
    """Call ``callback`` for each event, one after the other, on another thread.

    While it runs others wait; it should not take long. An exception is logged, and it goes on.

    Args:
        callback: Takes a ``StateEvent`` or a ``Gap``.
        subscription: Arguments of ``subscribe``.
    """

    def react(event: Event) -> None:
        callback(event)

    return Reaction(Subscription(**subscription), react)


class When(Generic[T]):
    """A condition that something may be tied to. Made by ``when``."""

    def __init__(self, subscription: dict[str, Any]) -> None:
        self._subscription = subscription

    def run(self, action: Callable[[StateEvent], object], *, once: bool = False) -> Reaction:
        """Run ``action`` with the event, each time that the condition comes true, or only once.

        A flow or a task can be called in it like any function. States that were there before are
        no reason to run.
        """
        reaction: list[Reaction] = []
        done = threading.Event()

        def react(event: Event) -> None:
            if not isinstance(event, StateEvent) or done.is_set():
                return
            if once:
                done.set()
            try:
                action(event)
            finally:
                if once:
                    subscription.close()

        subscription = Subscription(snapshot=False, **self._subscription)
        reaction.append(Reaction(subscription, react))
        return reaction[0]


def when(
    *, flow: str | None = None, task: str | None = None, state: str | Sequence[str], **more: Any
) -> When[Any]:
    """When a run of this flow, or of this task of it, is in that state: ``when(...).run(action)``.

    Args:
        flow: The name of a flow.
        task: The name of a task; without it flow runs' states are meant.
        state: Names or types of states.
        more: Arguments of ``subscribe``, such as ``environment``.

    Example:
        >>> when(flow="etl", task="load", state="Completed").run(print)  # doctest: +SKIP
    """
    states = [state] if isinstance(state, str) else list(state)
    filters = _filters(run=None, flow=flow, task=task, states=states)
    if task is None and not more.get("topics"):
        filters["kinds"] = ["flow-run"]
    return When({**filters, **more})


def _filters(
    *, run: object, flow: str | None, task: str | None, states: Sequence[str]
) -> dict[str, Any]:
    return {
        "runs": [str(run)] if run is not None else [],
        "flows": [flow] if flow is not None else [],
        "tasks": [task] if task is not None else [],
        "states": states,
    }


def _describe(event: Event) -> str:
    if isinstance(event, StateEvent):
        return f"{event.state_name} of {event.run_name or event.run_id}"
    return type(event).__name__
