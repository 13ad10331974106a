"""The workshop: what the task runs of one runner share while they are at work."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from zfast.prefect.reporting import Reporter
from zfast.runner.hub import Hub

if TYPE_CHECKING:
    from zfast.prefect.making import Making

logger = logging.getLogger("zfast.prefect")


class Workshop:
    """A runner's hub, reporter and completions, and the steps of its makings.

    Steps are done one after the other, on the hub's thread: so makings need no locks of their own,
    the longest chain of them no deep stack, and no interrupt of the user's threads hits one that
    others wait for. Once the hub has ended its callers take turns. Threads: the hub's for
    ``do`` and ``remember``, any for the others.

    Args:
        completions: Where callbacks of futures are called, and crashes told: not on the hub's
            thread, which they would hold up.
        flow_run_id: The flow run that they belong to, if they belong to one.
    """

    def __init__(
        self,
        hub: Hub,
        reporter: Reporter,
        completions: concurrent.futures.Executor,
        flow_run_id: UUID | None = None,
    ) -> None:
        self.hub = hub
        self.reporter = reporter
        self.completions = completions
        self.flow_run_id = flow_run_id
        self._pid = os.getpid()
        self._steps: deque[Callable[[], object]] = deque()
        self._is_at_work = False
        #: Those whose results can be lost.
        self._makings: weakref.WeakSet[Making] = weakref.WeakSet()

    @property
    def is_here(self) -> bool:
        """False in a fork, which has no workers."""
        return self._pid == os.getpid()

    def call(self, step: Callable[[], object]) -> None:
        """Have a step done on the hub's thread. It must not block."""
        self.hub.call(partial(self.do, step))

    def do(self, step: Callable[[], object]) -> None:
        """Have a step done after those before it, now or by who is at them. It must not block."""
        self._steps.append(step)
        if self._is_at_work:
            return
        self._is_at_work = True
        try:
            while self._steps:
                _do(self._steps.popleft())
        finally:
            self._is_at_work = False

    def remember(self, making: Making) -> None:
        """In a step: have a making forget itself when the workshop is closed."""
        self._makings.add(making)

    def close(self) -> None:
        """After the hub's end: nothing is made again, and what that would take is let go."""
        self.call(self._forget_all)

    def _forget_all(self) -> None:
        for making in list(self._makings):
            making.forget()


def _do(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        logger.exception("a step of a task run failed")
