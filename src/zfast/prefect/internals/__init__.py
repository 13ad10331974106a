"""The one place that touches what Prefect does not promise. Whatever is not as expected is "no".

Known to be right for Prefect 3.8. With another version every answer is the safe one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast
from uuid import UUID

import prefect.flow_engine
import prefect.task_engine
import prefect.utilities.engine
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.worker import EventsWorker
from prefect.transactions import BaseTransaction

from zfast.prefect.internals.version import is_known, takes

if TYPE_CHECKING:
    from types import FrameType

    from prefect.blocks.core import Block
    from prefect.client.schemas.objects import FlowRun, State, TaskRun
    from prefect.events.schemas.events import Event as PrefectEvent
    from prefect.flows import Flow
    from prefect.serializers import Serializer

_RECORDS = "prefect._internal.result_records"
_EMIT = "emit_task_run_state_change_event"
_REPORT = "_capture_state_report"
_PERSIST = ("_persist_result_record", "_apersist_result_record")
_EXISTS = ("_exists", "_aexists")
_CALL_BLOCK = ("call_explicitly_sync_block_method", "call_explicitly_async_block_method")


class Write(NamedTuple):
    """A result on its way into a storage.

    Attributes:
        storage: The block that gets it.
        in_json: Whether it becomes a string of a JSON record, or is stored as the bytes it is.
    """

    storage: object
    in_json: bool


def current_write(serializer: Serializer[Any]) -> Write | None:
    """Say which storage gets the bytes that a serializer is being asked for, and how.

    For the `dumps` of a serializer, which must call this directly. The current run context does
    not tell: a transaction commits children that belong to other stores. The callers do::

        ResultStore._persist_result_record → ResultRecord[.serialize].serialize_result → dumps

    Any other caller may do anything with the bytes, compress them for one.

    Returns:
        The write, or None if that is not who is calling.
    """
    if not is_known():
        return None
    frame = sys._getframe(1).f_back
    if not _is(frame, _RECORDS, "serialize_result"):
        return None
    if getattr(frame.f_locals.get("self"), "serializer", None) is not serializer:
        return None
    frame = frame.f_back
    in_json = _is(frame, _RECORDS, "serialize")
    if in_json and frame is not None:
        frame = frame.f_back
    if not _is(frame, "prefect.results", *_PERSIST):
        return None
    return Write(getattr(frame.f_locals.get("self"), "result_storage", None), in_json)


def is_existence_check() -> bool:
    """Say whether the value that a serializer is being asked for is thrown away.

    For its `loads`, which must call this directly. Prefect reads whole records to learn whether
    they are there and when they expire: ``ResultStore._exists → ResultRecord.deserialize → loads``.
    """
    if not is_known():
        return False
    frame = sys._getframe(1).f_back
    return _is(frame, _RECORDS, "deserialize") and _is(frame.f_back, "prefect.results", *_EXISTS)


def results_looked_for(key_storage: Block) -> object | None:
    """Return the storage of a result that Prefect asks a `key_storage` for, to see if it is there.

    For the `read_path` and `aread_path` of a block, which must call this directly::

        ResultStore._exists → call_explicitly_sync_block_method → read_path

    Prefect looks for the metadata alone, and takes the result they name to be there.

    Returns:
        The storage that has the result itself, or None if that is not who is calling.
    """
    frame = sys._getframe(1).f_back
    if not is_known() or not _is(frame, "prefect._internal.compatibility.blocks", *_CALL_BLOCK):
        return None
    if not _is(frame := frame.f_back, "prefect.results", *_EXISTS):
        return None
    store = frame.f_locals.get("self")
    if getattr(store, "metadata_storage", None) is not key_storage:
        return None
    return getattr(store, "result_storage", None)


def _is(frame: FrameType | None, module: str, *functions: str) -> TypeGuard[FrameType]:
    return (
        frame is not None
        and frame.f_code.co_name in functions
        and frame.f_globals.get("__name__") == module
    )


def outermost_run() -> FlowRunContext | None:
    """Return the context of the flow run that this one, if any, and all around it are in.

    None outside of runs, and where `when_left` could not tell when it ends.
    """
    context = FlowRunContext.get()
    while context is not None and is_known():
        token = getattr(context, "_token", None)
        if token is None:
            return None  # it was left already: a thread of its runs on
        if not isinstance(token.old_value, FlowRunContext):
            return context if tap_exits() else None
        context = token.old_value
    return None


def when_left(context: FlowRunContext, call: Callable[[], None]) -> None:
    """Have something called once, right after a context of `outermost_run` was left."""
    _exits.setdefault(id(context), []).append(call)


_exits: dict[int, list[Callable[[], None]]] = {}


@functools.cache
def tap_exits() -> bool:
    """Have the ends of flow runs noticed; those alone that begin after the first call.

    Returns:
        False if Prefect is not as it was when this was written.
    """
    leave = FlowRunContext.__exit__
    if not takes(leave, "self", "_"):
        return False

    @functools.wraps(leave)
    def leave_and_tell(self: FlowRunContext, *raised: Any) -> None:
        leave(self, *raised)
        for call in _exits.pop(id(self), ()):
            call()

    cast("Any", FlowRunContext).__exit__ = leave_and_tell
    return True


def leave_task_run() -> None:
    """In a copy of a context: be in no task run any more, only in its flow run."""
    if is_known():
        for kind in (TaskRunContext, BaseTransaction):
            cast("Any", kind).__var__.set(None)


def block_id(block: Block) -> UUID | None:
    """Return the id under which a block is saved in the API, or None."""
    return block._block_document_id


def save(block: Block, name: str) -> UUID:
    """Save a block in the API under a name, over what has that name, even from within a loop."""
    document_id: UUID = cast("Any", block).save(name, overwrite=True, _sync=True)
    return document_id


def mark_saved(block: Block, document_id: UUID, name: str) -> None:
    """Note on a block that it is saved in the API, as its own `save` does."""
    block._block_document_id = document_id
    block._block_document_name = name
    block._is_anonymous = False


def tap_states(
    on_task_state: Callable[[TaskRun, State[Any]], None],
    on_flow_state: Callable[[Flow[..., Any], FlowRun, State[Any]], None],
    on_event: Callable[[PrefectEvent], None],
) -> bool:
    """Have every state of this process's runs told, in the moment it is set. For once a process.

    Task runs' states are told where their engines emit events; what other processes had emitted,
    a process pool's, comes as the events themselves. Flow runs' come from their engines, once the
    server has agreed. Listeners may not raise, and may be called on any thread.

    Returns:
        False if Prefect is not as it was when this was written; then nothing is told.
    """
    emit = getattr(prefect.utilities.engine, _EMIT, None)
    engines = (prefect.flow_engine.FlowRunEngine, prefect.flow_engine.AsyncFlowRunEngine)
    if not (
        is_known()
        and takes(emit, "task_run", "initial_state", "validated_state", "follows")
        and getattr(prefect.task_engine, _EMIT, None) is emit
        and takes(EventsWorker.send, "self", "item")
        and all(takes(vars(engine).get("begin_run"), "self") for engine in engines)
        and all(takes(getattr(engine, _REPORT, None), "self", "state") for engine in engines)
    ):
        return False
    _tap_task_engine(cast("Any", emit), on_task_state)
    _tap_events(on_event)
    for engine in engines:
        _tap_flow_engine(engine, on_flow_state)
    return True


def _tap_task_engine(emit: Callable[..., Any], tell: Callable[[TaskRun, State[Any]], None]) -> None:
    @functools.wraps(emit)
    def emit_and_tell(
        task_run: TaskRun,
        initial_state: State[Any] | None,
        validated_state: State[Any],
        follows: PrefectEvent | None = None,
    ) -> PrefectEvent | None:
        tell(task_run, validated_state)
        return cast("PrefectEvent | None", emit(task_run, initial_state, validated_state, follows))

    for module in (prefect.utilities.engine, prefect.task_engine):
        setattr(module, _EMIT, emit_and_tell)
    task_worker = sys.modules.get("prefect.task_worker")
    if getattr(task_worker, _EMIT, None) is emit:
        setattr(task_worker, _EMIT, emit_and_tell)


def _tap_events(tell: Callable[[PrefectEvent], None]) -> None:
    send = EventsWorker.send

    @functools.wraps(send)
    def send_and_tell(self: EventsWorker, item: PrefectEvent) -> None:
        tell(item)
        send(self, item)

    cast("Any", EventsWorker).send = send_and_tell


def _tap_flow_engine(
    engine: type[Any], tell: Callable[[Flow[..., Any], FlowRun, State[Any]], None]
) -> None:
    begin, report = engine.begin_run, getattr(engine, _REPORT)

    @functools.wraps(begin)
    def begin_run(self: Any) -> Any:
        # The state that the run was made with; an async engine's coroutine is returned as it is.
        if self.flow_run is not None and self.flow_run.state is not None:
            tell(self.flow, self.flow_run, self.flow_run.state)
        return begin(self)

    @functools.wraps(report)
    def report_state(self: Any, state: State[Any]) -> None:
        tell(self.flow, self.flow_run, state)  # before the flow's hooks, which may take long
        report(self, state)

    engine.begin_run = begin_run
    setattr(engine, _REPORT, report_state)
