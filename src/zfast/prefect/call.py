"""A call: what the worker that runs a task run is sent for it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict
from uuid import UUID

from prefect.context import AssetContext, FlowRunContext, TagsContext
from prefect.tasks import MaterializingTask
from prefect.utilities.engine import collect_task_run_inputs_sync

from zfast.prefect.internals.known_results import is_long

if TYPE_CHECKING:
    from prefect.client.schemas.objects import RunInput
    from prefect.tasks import Task

#: Upstream runs by parameter, and of what is waited for.
Inputs = dict[str, set["RunInput"]]


class Call(TypedDict):
    """The arguments of Prefect's task engine, and what is in force around it.

    Attributes:
        assets: An ``AssetContext`` of the task run, if that has anything to do with assets.
    """

    task_run_id: UUID
    parameters: dict[str, Any]
    wait_for: list[Any] | None
    dependencies: Inputs | None
    tags: set[str]
    assets: dict[str, Any] | None


def make_call(
    task: Task[Any, Any],
    task_run_id: UUID,
    parameters: dict[str, Any],
    wait_for: list[Any],
    dependencies: Inputs | None,
) -> Call:
    """The call of a task run that is submitted here and now.

    Which run made a value, and which assets it made, Prefect notes in the flow run's context, of
    which each worker has one of its own: so it is looked up here.
    """
    flow = FlowRunContext.get()
    if flow is not None and (flow.run_results or flow.task_run_assets):
        dependencies = _collect_inputs(parameters, wait_for, dependencies or {})
    return {
        "task_run_id": task_run_id,
        "parameters": parameters,
        "wait_for": wait_for or None,
        "dependencies": dependencies,
        "tags": TagsContext.get().current_tags,
        "assets": _note_assets(flow, task, task_run_id, dependencies),
    }


def _collect_inputs(parameters: dict[str, Any], wait_for: list[Any], known: Inputs) -> Inputs:
    """What can be told at once: a worker looks at everything, and finds futures and States."""
    named = {**parameters, "wait_for": wait_for} if wait_for else parameters
    found = {
        name: {*collect_task_run_inputs_sync(value, max_depth=2), *known.get(name, ())}
        for name, value in named.items()
        if not is_long(value)
    }
    return {name: inputs for name, inputs in found.items() if inputs}


def _note_assets(
    flow: FlowRunContext | None,
    task: Task[Any, Any],
    task_run_id: UUID,
    inputs: Inputs | None,
) -> dict[str, Any] | None:
    """The task run's assets, also noted here for those that take its result."""
    if flow is None or not (
        flow.task_run_assets or task.asset_deps or isinstance(task, MaterializingTask)
    ):
        return None
    assets = AssetContext.from_task_and_inputs(task, task_run_id, inputs, copy_to_child_ctx=True)
    return assets.serialize()
