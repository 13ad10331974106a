"""Prefect's service that sends a process's events to the API."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import queue
import time
from collections.abc import Callable
from typing import Any, cast

from prefect.events.worker import EventsWorker

from zfast.prefect.internals.version import is_known, takes

#: A service that has given up wakes nobody who waits for it.
LOOK_AGAIN_S = 0.1
#: Events are held for so long at most: as long as a busy thread keeps all others waiting.
HOLD_S = 0.005


def events_are_forwarded() -> bool:
    """Whether this is a process pool's child, whose parent sees the events of its runs."""
    return EventsWorker._client_override is not None


def wait_for_events_sent(timeout_s: float) -> bool:
    """Wait until every event emitted so far was sent to the API; False if that takes too long.

    Prefect's own way waits for ever for a service that could not connect and has given up.
    """
    if not is_known():
        EventsWorker.instance().wait_until_empty()
        return True
    service: Any = EventsWorker.instance()
    events: queue.Queue[Any] = service._queue
    arrivals: _Arrivals | None = getattr(service, "_zfast_arrivals", None)
    if arrivals is not None and events.unfinished_tasks:
        arrivals.hurry()
    deadline = time.monotonic() + timeout_s
    with events.all_tasks_done:
        while events.unfinished_tasks:
            left_s = deadline - time.monotonic()
            if service._stopped or left_s <= 0:
                return False
            events.all_tasks_done.wait(min(left_s, LOOK_AGAIN_S))
    return True


@functools.cache
def take_events_on_the_loop() -> bool:
    """Have services that begin from now on take events from their queue on their own event loop.

    Prefect has a second thread wait for each event, and hand it over: more work than sending it.

    Returns:
        False if Prefect is not as it was when this was written; then it goes on as it does.
    """
    by_thread = EventsWorker._main_loop
    if not (
        is_known()
        and takes(by_thread, "self")
        and takes(EventsWorker._handle, "self", "event")
        and takes(queue.Queue._put, "self", "item")
    ):
        return False

    @functools.wraps(by_thread)
    async def main_loop(self: Any) -> None:
        arrivals = _Arrivals(self._queue)
        self._zfast_arrivals = arrivals
        while not self._stopped:
            await arrivals.wait()
            while arrivals.queue.qsize() and not self._stopped:
                event = arrivals.queue.get_nowait()
                try:
                    await self._handle(event)
                except Exception as error:
                    self._logger.error("An event was not sent: %r: %r", error, event)
                finally:
                    arrivals.queue.task_done()
        await by_thread(self)  # what is left, and what it says of it

    cast("Any", EventsWorker)._main_loop = main_loop
    return True


class _Arrivals:
    """What arrives in a service's queue, noticed by the service's event loop.

    Not at once, but when somebody waits for it or after `HOLD_S`: beside a thread that computes,
    the loop would wait for the interpreter several times for each event.

    Args:
        queue: Any thread's to put into.
    """

    def __init__(self, queue: queue.Queue[Any]) -> None:
        self.queue = queue
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._due.set()  # for what is there already
        self._is_held = False
        self._timer: asyncio.TimerHandle | None = None
        self._put = queue._put
        cast("Any", queue)._put = self._announce_and_put

    async def wait(self) -> None:
        """Wait until it is time to take what is there."""
        await self._due.wait()
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_held = False  # before the queue is looked at: what comes after announces itself

    def hurry(self) -> None:
        """Have what is there be taken now. Threads: any."""
        self._call(self._due.set)

    def _announce_and_put(self, item: Any) -> None:
        """In place of the queue's ``_put``: with its mutex, so that the loop looks when it is done.

        The item is put last: an interrupt of the task, such as its time-out, may hit any line.
        """
        if item is None:  # the service's end
            self.hurry()
        elif not self._is_held:
            try:
                self._is_held = True
                self._call(self._hold)
            except BaseException:
                self._is_held = False
                raise
        self._put(item)

    def _hold(self) -> None:
        self._timer = self._loop.call_later(HOLD_S, self._due.set)

    def _call(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: so was the service
            # Not in this thread's context, which leads to what its task run was given.
            self._loop.call_soon_threadsafe(callback, context=contextvars.Context())
