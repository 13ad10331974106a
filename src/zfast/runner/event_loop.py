"""One event loop for all asynchronous jobs of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class EventLoop:
    """Runs coroutines one after another on the same loop.

    So a client that a module made in one job, whose connections belong to a loop, serves the next.
    What a coroutine leaves running is cancelled when it ends, as by ``asyncio.run``: nothing of one
    job goes on in the next. Threads: the one that calls ``run`` first.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end; what it returns or raises."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            return self._loop.run_until_complete(coroutine)
        finally:
            _cancel_rest(self._loop)

    def close(self) -> None:
        """Close the loop, if there is one."""
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._loop = None


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
