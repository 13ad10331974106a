"""What a flow run uses of a store is held until the run has ended, and no longer.

So a process that runs one flow after the other, a server of flows or a notebook, does not keep all
that they ever used from being evicted. Outside of runs, it is held until the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zfast.prefect import internals
from zfast.store import leases
from zfast.store.folder import FolderStore
from zfast.store.leases import Leases

# Before any run begins: ``with`` looks up what ends a context when it enters it.
internals.tap_exits()


class _Run:
    """A flow run that is going on in this process, and where it holds objects."""

    def __init__(self, context_id: int) -> None:
        self._context_id = context_id
        self.leases: set[Leases] = set()

    def end(self) -> None:
        _runs.pop(self._context_id, None)
        for each in list(self.leases):
            each.end_scope(self)


# By the id of the run's context, which cannot be hashed; taken out when the context is left.
_runs: dict[int, _Run] = {}


@contextmanager
def held_for_the_run(folder: FolderStore) -> Iterator[None]:
    """Have what is used in the block held until the outermost flow run around it has ended."""
    context = internals.outermost_run()
    if context is None:
        yield
        return
    new = _Run(id(context))
    run = _runs.setdefault(id(context), new)
    if run is new:
        internals.when_left(context, run.end)
    run.leases.add(folder.leases)
    token = leases.scope.set(run)
    try:
        yield
    finally:
        leases.scope.reset(token)
