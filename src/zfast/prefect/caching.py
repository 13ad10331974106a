"""Prefect's cache policies without their cost.

Prefect makes a key of every input of a plain task: JSON is tried, the input pickled, the bytes
hashed with MD5; and only then it turns out that nothing is stored. Here

- no key is made where no result could be read or written under it, and
- an input with a lot of memory in it stands in the key with a digest of that memory.

All else is Prefect's own: which parts a policy has and in which order, the key of every input
without much memory, keys that functions and subclasses make, and errors. So a cache is shared with
Prefect's other task runners, except for results of large inputs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from prefect.cache_policies import (
    NO_CACHE,
    CompoundCachePolicy,
    FlowParameters,
    Inputs,
    RunId,
    TaskSource,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.filesystems import LocalFileSystem, NullFileSystem
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE
from prefect.transactions import get_transaction

from zfast.codec.digest import BufferDigests, digest_large
from zfast.prefect.internals.version import is_known
from zfast.prefect.storage import ZfastStorage

#: An input with less memory in it has the key that Prefect gives it.
LARGE_NBYTES: Final = 128 * 1024
#: How far the clocks of the API, of this host and of its file systems may be apart.
MAX_CLOCK_SKEW: Final = timedelta(minutes=1)

#: Policies that only make a key, and do nothing else.
_PURE: Final = (Inputs, TaskSource, RunId, FlowParameters, type(NO_CACHE))


def fast_policy(policy: Any, digests: BufferDigests | None = None) -> Any:
    """Give a policy that makes the same keys as another, faster.

    For a worker, which sets it on its own copy of the task before it runs it.

    Args:
        policy: A task's ``cache_policy``. What is not one of Prefect's built-in policies, such as
            ``NotSet`` or a subclass, is given back as it is.
        digests: Makes and remembers the digests of memory.
    """
    if not is_known():
        return policy
    digests = digests or BufferDigests()
    if type(policy) is Inputs:
        return _FastInputs(**vars(policy), digests=digests)
    if type(policy) is not CompoundCachePolicy:
        return policy
    # Not through the constructor, which puts plain policies for inputs at the end.
    fast = _FastCompound.__new__(_FastCompound)
    vars(fast).update(vars(policy))
    fast.policies = [fast_policy(part, digests) for part in policy.policies]
    fast.is_pure = all(type(part) in _PURE for part in policy.policies)
    return fast


@dataclass
class _FastInputs(Inputs):
    digests: BufferDigests = field(default_factory=BufferDigests, compare=False, repr=False)

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        hashed = dict(inputs or {})
        for name, value in hashed.items():
            if name not in (self.exclude or ()):
                digest = digest_large(value, LARGE_NBYTES, self.digests)
                if digest is not None:
                    hashed[name] = {"zfast.digest": digest}
        return super().compute_key(task_ctx, hashed, flow_parameters, **kwargs)


@dataclass
class _FastCompound(CompoundCachePolicy):
    #: Whether nothing would be missed if no key was made.
    is_pure: bool = field(default=False, compare=False, repr=False)

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        if self.is_pure and task_ctx and self._is_useless(task_ctx):
            return None
        return super().compute_key(task_ctx, inputs, flow_parameters, **kwargs)

    def _is_useless(self, context: TaskRunContext) -> bool:
        """Say that under no key this policy could make now, anything would be read or written."""
        task = context.task
        if (
            context.persist_result
            or task.on_commit_hooks  # are given the transaction, and its key with it
            or task.on_rollback_hooks
            or self.isolation_level is not None
            or self.lock_manager is not None
            or get_transaction() is not None
        ):
            return False
        refresh = task.refresh_cache
        if PREFECT_TASKS_REFRESH_CACHE.value() if refresh is None else refresh:
            return True
        return any(type(part) is RunId for part in self.policies) and not _may_hold_results(context)


def _may_hold_results(context: TaskRunContext) -> bool:
    """Say whether there may be a result whose key holds the id of the current run.

    It cannot be older than the run.
    """
    if context.task_run.flow_run_id is None:
        return False  # a run of its own: it is the task run's id
    store = context.result_store
    storage: Any = store.metadata_storage
    if storage is None or isinstance(storage, NullFileSystem):
        storage = store.result_storage
    if type(storage) not in (LocalFileSystem, ZfastStorage):
        return True
    flow_context = FlowRunContext.get()
    flow_run = flow_context.flow_run if flow_context else None
    if flow_context is None or flow_run is None or flow_run.created is None:
        return True
    if flow_run.id != context.task_run.flow_run_id:
        return True
    born = min(flow_context.start_time, flow_run.created) - MAX_CLOCK_SKEW
    try:
        # Writing a new object changes the folder that it is in.
        changed = os.stat(os.path.expanduser(storage.basepath or ".")).st_mtime
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return changed >= born.timestamp()
