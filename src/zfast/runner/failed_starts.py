"""Failed starts: how long to wait after one, and when workers are given up on."""

from __future__ import annotations

import time

#: Workers are given up on when so many in a row failed before one ever could work.
MAX_FIRST_FAILURES = 3
#: The same once one has worked: workers can be had, and something keeps killing them.
MAX_FAILURES = 10
#: After such a failure the next start waits so long, and twice as long each time.
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0


class FailedStarts:
    """Counts the workers in a row that could not be started, or ended before they were of use.

    Args:
        n_workers: As many times as this is the most that is tolerated.

    Attributes:
        n: How many in a row.
        first_at: When the first of them was, by the monotonic clock.
        again_at: No worker is to be started before.
    """

    def __init__(self, n_workers: int = 1) -> None:
        self._n_workers = n_workers
        self._was_useful = False
        self.n = 0
        self.first_at = 0.0
        self.again_at = 0.0

    @property
    def too_many(self) -> bool:
        """Whether there is no use in trying again."""
        most = MAX_FAILURES if self._was_useful else MAX_FIRST_FAILURES
        return self.n >= most * self._n_workers

    @property
    def next_start(self) -> float:
        """When the wait is over, by the monotonic clock; infinite without one."""
        return self.again_at if self.again_at > time.monotonic() else float("inf")

    def add(self) -> None:
        """One more."""
        now = time.monotonic()
        self.n += 1
        if self.n == 1:
            self.first_at = now
        self.again_at = now + min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.n - 1, 10))

    def end(self) -> None:
        """A worker is of use."""
        self.n = 0
        self._was_useful = True
