"""What a flow run uses of a store is held until the run has ended, and no longer.

So a process that runs one flow after the other, a server of flows or a notebook, does not keep all
that they ever used from being evicted. Outside of runs, it is held until the process ends.

A worker process, which runs tasks of a flow that runs elsewhere, enters and leaves that flow run
again and again, and nobody tells it of its end. There it is held until the process works for
another flow run, or ends.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial

from prefect.context import FlowRunContext

from zfast.prefect import internals
from zfast.store import leases
from zfast.store.folder import FolderStore
from zfast.store.leases import Leases

# Before any run begins: ``with`` looks up what ends a context when it enters it.
internals.tap_exits()


class _Run:
    """A flow run that is going on, here or elsewhere, and where it holds objects for us."""

    def __init__(self, key: Hashable) -> None:
        self._key = key
        #: By their ids, as they cannot be hashed; taken out when the context is left.
        self.contexts: set[int] = set()
        self.leases: set[Leases] = set()

    def leave(self, context_id: int, *, is_over: bool) -> None:
        self.contexts.discard(context_id)
        if is_over:
            self.end()

    def end(self) -> None:
        _runs.pop(self._key, None)
        for each in list(self.leases):
            each.end_scope(self)


_runs: dict[Hashable, _Run] = {}


@contextmanager
def held_for_the_run(folder: FolderStore) -> Iterator[None]:
    """Have what is used in the block held until the outermost flow run around it has ended."""
    run = take_up_run()
    if run is None:
        yield
        return
    run.leases.add(folder.leases)
    token = leases.scope.set(run)
    try:
        yield
    finally:
        leases.scope.reset(token)


def take_up_run() -> _Run | None:
    """Work for the outermost flow run around this; let go for those of elsewhere that were left.

    Returns:
        The run; None outside of runs.
    """
    context = internals.outermost_run()
    if context is None:
        return None
    key = _key_of(context)
    run = _runs.setdefault(key, _Run(key))
    if id(context) not in run.contexts:
        run.contexts.add(id(context))
        # Prefect says so of a context that it sent to another process.
        leave = partial(run.leave, id(context), is_over=not context.detached)
        internals.when_left(context, leave)
        for other in list(_runs.values()):
            if other is not run and not other.contexts:
                other.end()
    return run


def _key_of(context: FlowRunContext) -> Hashable:
    return id(context) if context.flow_run is None else context.flow_run.id
