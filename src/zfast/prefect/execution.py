"""Runs Prefect tasks in a worker process, its context, settings and clients kept warm."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, cast
from uuid import UUID

import cloudpickle
import prefect.task_engine
from prefect.client.schemas.objects import State, StateDetails, TaskRun
from prefect.context import (
    AssetContext,
    FlowRunContext,
    SyncClientContext,
    hydrated_context,
    tags,
)
from prefect.exceptions import Abort, Pause
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from prefect.tasks import Task

from zfast.codec import Payload, decode, encode
from zfast.codec.digest import BufferDigests
from zfast.errors import CodecError, WorkerError
from zfast.prefect.caching import fast_policy
from zfast.prefect.call import Call
from zfast.prefect.crashes import active_flow_run_id, crashed_by
from zfast.prefect.generators import collect_yielded
from zfast.prefect.handed_over import HandedOver, handing_over
from zfast.prefect.references import resolve_references
from zfast.prefect.reporting import find_begun_run, flush_events, report_as_worker
from zfast.prefect.run_leases import take_up_run
from zfast.prefect.state_tap import process_tap
from zfast.runner import cycles
from zfast.runner.event_loop import EventLoop
from zfast.runner.job import Blob
from zfast.sharing.handover import Parcel
from zfast.sharing.results import seal_results

logger = logging.getLogger("zfast.prefect")

#: Tasks that stay unpickled in a worker.
MAX_TASK_OBJECTS = 256
#: What Prefect's engine lets through without a word to the API; anything else it tells as a crash.
NOT_TOLD = (Exception, Pause, Abort, GeneratorExit)
#: A worker that broadcasts waits so long, before its first job, for those who listen.
HEARD_S = 0.5


class TaskExecutor:
    """Prefect's task engine behind the worker's job loop. Threads: the worker's main thread.

    A job's first parcel is a ``Call``; in it each future of an earlier task is a reference to one
    of the parcels that follow, the earlier task's final State.
    """

    def __init__(
        self,
        notify: Callable[[str, bytes], None],
        identify: Callable[[memoryview], Hashable | None],
    ) -> None:
        report_as_worker(notify)
        self._digests = BufferDigests(identify)
        self._tasks: dict[bytes, Task[Any, Any]] = {}
        self._context: bytes | None = None
        self._hydrated = contextlib.ExitStack()
        self._loop = EventLoop()
        process_tap.wait_heard(HEARD_S)

    def run(self, code: Blob, context: Blob, parcels: list[Parcel], attempt: int) -> list[Payload]:
        """Run one task run to its final state; the State is the one payload returned."""
        self._enter_context(context)
        task = self._load_task(code)
        try:
            return [self._run_call(task, parcels, attempt)]
        finally:
            flush_events()  # in any case: the driver, which is told next, may have more to say

    def _run_call(self, task: Task[Any, Any], parcels: list[Parcel], attempt: int) -> Payload:
        with handing_over() as noted:
            start_ns = time.perf_counter_ns()
            upstream = [cache(partial(_decode_parcel, parcel, noted)) for parcel in parcels[1:]]
            call: Call = decode(parcels[0].open(), persistent_load=resolve_references(upstream))
            noted.handover_ns = time.perf_counter_ns() - start_ns
            task_run = find_begun_run(call["task_run_id"], attempt - 1) if attempt > 1 else None
            try:
                state = self._run_task(task, call, task_run)
            finally:
                _forget_runs()
        return _encode_state(state)

    def warm(self, codes: list[Blob], context: Blob) -> None:
        """Hydrate a context and unpickle tasks, whose modules are imported thereby."""
        try:
            self._enter_context(context)
            for code in codes:
                self._load_task(code)
        except Exception:
            logger.debug("this worker did not get warm", exc_info=True)  # the job will say why

    def close(self) -> None:
        """Leave the hydrated context."""
        self._hydrated.close()
        self._loop.close()

    def _enter_context(self, context: Blob) -> None:
        # Hydrating rebuilds settings and SSL contexts, some 70 ms: once per context, not per task.
        if context.digest == self._context:
            return
        self._hydrated.close()
        self._context = None
        self._hydrated.enter_context(hydrated_context(cloudpickle.loads(context.data)))
        self._hydrated.enter_context(SyncClientContext.get_or_create())
        take_up_run()
        # Prefect's services keep the context they are started in: not that of a task run, whose
        # state, and so its result, would live as long as they do.
        flush_events()
        self._context = context.digest

    def _load_task(self, code: Blob) -> Task[Any, Any]:
        task = self._tasks.get(code.digest)
        if task is None:
            if len(self._tasks) >= MAX_TASK_OBJECTS:
                self._tasks.clear()
            task = cloudpickle.loads(code.data)
            # Before Prefect, its hooks and its caches see what the function returns.
            task.fn = seal_results(collect_yielded(task.fn))
            task.cache_policy = fast_policy(task.cache_policy, self._digests)
            # Nothing would read what a worker's process caches, and it would pin the memory.
            task.cache_result_in_memory = False
            self._tasks[code.digest] = task
            cycles.modules_loaded()
        return task

    def _run_task(self, task: Task[Any, Any], call: Call, task_run: TaskRun | None) -> State[Any]:
        arguments: dict[str, Any] = {
            "task": task,
            "task_run_id": call["task_run_id"],
            "task_run": task_run,
            "parameters": call["parameters"],
            "wait_for": call["wait_for"],
            "dependencies": call["dependencies"],
            "return_type": "state",
        }
        assets = call["assets"]
        around = contextlib.nullcontext() if assets is None else AssetContext(**assets)
        try:
            with tags(*call["tags"]), around:
                state = (
                    self._loop.run(prefect.task_engine.run_task_async(**arguments))
                    if task.isasync
                    else prefect.task_engine.run_task_sync(**arguments)
                )
        except NOT_TOLD:
            raise
        except BaseException as error:
            return _crashed_in_engine(call["task_run_id"], error)
        return cast("State[Any]", state)


def _crashed_in_engine(task_run_id: UUID, error: BaseException) -> State[Any]:
    """The State of a task run whose engine has told the API of its crash, as by ``SystemExit``.

    It is given as a result, not raised: then the driver would tell it again.
    """
    told = WorkerError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    details = StateDetails(task_run_id=task_run_id, flow_run_id=active_flow_run_id())
    return crashed_by(told, details)


def _forget_runs() -> None:
    """Have Prefect forget which run made which object: another may come to be at its address.

    It would be taken for the result of that run, wherever it is passed to. The context, and so
    what is noted there, lives on from task run to task run. Which assets a run made is noted by
    who submitted it.
    """
    context = FlowRunContext.get()
    if context is not None:
        context.run_results.clear()
        context.task_run_assets.clear()


def _decode_parcel(parcel: Parcel, noted: HandedOver) -> Any:
    state = decode(parcel.open())
    noted.add(parcel, state)
    return state


def _encode_state(state: State[Any]) -> Payload:
    error = _exception_of(state)
    if error is not None:
        _note_traceback(error)
    try:
        return encode(state)
    except CodecError as failure:
        if error is None:
            raise
        stand_in = WorkerError(
            f"{type(error).__name__}: {error}",
            detail="the task's own exception cannot be pickled: " + failure.message,
        )
        _note_traceback(error, stand_in)
        return encode(state.model_copy(update={"data": stand_in}))


def _exception_of(state: State[Any]) -> BaseException | None:
    """What a run failed with; an exception that a task returns is a value like any other."""
    if state.is_completed():
        return None
    data = state.data.result if isinstance(state.data, ResultRecord) else state.data
    return data if isinstance(data, BaseException) else None


def _note_traceback(error: BaseException, carrier: BaseException | None = None) -> None:
    """Keep the traceback, which pickling drops, as a note (PEP 678; set by hand for 3.10)."""
    carrier = carrier or error
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    notes = [*getattr(carrier, "__notes__", []), f"in a zfast worker:\n{text}"]
    try:
        carrier.__notes__ = notes
    except AttributeError:
        pass  # an exception with __slots__
