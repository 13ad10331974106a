"""A folder that is kept within a size by those who write to it."""

from __future__ import annotations

import logging
import time

from zfast.codec import Payload
from zfast.errors import StoreError
from zfast.store.compression import Codec
from zfast.store.folder import Durability, FolderStore
from zfast.store.format import NO_TOKEN
from zfast.store.retention import check_budget, collect
from zfast.store.walk import pass_over

#: How often a writer looks, at most and at least: by what it wrote, and by time.
LOOK_AFTER_SHARE = 1 / 16
LOOK_AFTER_S = 600.0
#: What is left of the budget's bytes when it was exceeded: room until the next look.
LOW_WATER = 0.9

_log = logging.getLogger("zfast.store")


class BoundedStore(FolderStore):
    """A `FolderStore` whose writers evict what was used longest ago when it exceeds a budget.

    Between two looks each writing process may add a sixteenth of the budget, and what live
    processes use stays whatever the budget.

    Args:
        basepath: See `FolderStore`.
        budget_nbytes: What the objects may take together.
        durability: See `FolderStore`.
        compression: See `FolderStore`.

    Raises:
        ConfigError: The budget is negative, or see `FolderStore`.
    """

    def __init__(
        self,
        basepath: str,
        *,
        budget_nbytes: int,
        durability: Durability = "process",
        compression: Codec | None = None,
    ) -> None:
        """Take a folder; nothing is made or read yet."""
        super().__init__(basepath, durability=durability, compression=compression)
        check_budget(budget_nbytes)
        self.budget_nbytes = budget_nbytes
        self._written_nbytes = 0
        self._next_look = 0.0

    def put(
        self,
        key: str,
        content: bytes | memoryview,
        payload: Payload | None = None,
        token: bytes = NO_TOKEN,
    ) -> None:
        """Store one object, then see to the budget now and then. See `FolderStore.put`."""
        super().put(key, content, payload, token)
        self._written_nbytes += len(content) + (payload.nbytes if payload else 0)
        now = time.monotonic()
        if now < self._next_look and (self._written_nbytes < LOOK_AFTER_SHARE * self.budget_nbytes):
            return
        self._written_nbytes = 0
        self._next_look = now + LOOK_AFTER_S
        try:
            self._look()
        except StoreError as error:
            # The object is stored. That others cannot be removed is for who runs `gc` to mend.
            _log.warning("the size of the store %s is not kept: %s", self.basepath, error)

    def _look(self) -> None:
        nbytes = sum(entry.nbytes for entry in self.scan(pass_over))
        if nbytes <= self.budget_nbytes:
            return
        done = collect(self, budget_nbytes=int(LOW_WATER * self.budget_nbytes))
        if done.clock_behind_s:
            _log.warning(
                "the store %s exceeds its budget: the clock was set back by %.0f s, so nobody can "
                "say what is oldest; run `zfast store gc --reset-times`",
                self.basepath,
                done.clock_behind_s,
            )
