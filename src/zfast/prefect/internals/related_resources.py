"""What Prefect notes on each event: the flow run that it belongs to, its flow, its tags."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.related import related_resources_from_run_context
from prefect.events.worker import EventsWorker
from prefect.settings import get_current_settings

from zfast.prefect.internals.version import is_known, takes

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.events.schemas.events import Event, RelatedResource

_LINEAGE = "prefect.resource.lineage-group"


class _Remembered(NamedTuple):
    """What a flow run's events have in common: its resources, and the tags of all of them.

    An event may be related to ``n_at_most``.
    """

    #: Weak: it comes to have its flow's result.
    flow_run: weakref.ref[FlowRun]
    resources: list[RelatedResource]
    tags: list[RelatedResource]
    n_at_most: int


@functools.cache
def remember_related_resources() -> bool:
    """Have what a flow run's events have in common looked up once, and not for each of them.

    Returns:
        False if Prefect is not as it was when this was written; then it looks as ever.
    """
    attach = EventsWorker.attach_related_resources_from_context
    if not (
        is_known()
        and takes(attach, "self", "event")
        and takes(related_resources_from_run_context, "client", "exclude")
    ):
        return False

    @functools.wraps(attach)
    async def attach_remembered(self: Any, event: Event) -> None:
        context = FlowRunContext.get()
        flow_run = context.flow_run if context is not None else None
        if flow_run is None or _LINEAGE in event.resource:
            return await attach(self, event)
        remembered: _Remembered | None = getattr(self, "_zfast_remembered", None)
        if remembered is None or remembered.flow_run() is not flow_run:
            remembered = await _look_up(self, flow_run)
            self._zfast_remembered = remembered
        involved = {resource.id for resource in event.involved_resources}
        if not _is_all(remembered, event, involved):
            return await attach(self, event)
        event.related += remembered.resources
        event.related += [tag for tag in remembered.tags if tag.id not in involved]
        return None

    cast("Any", EventsWorker).attach_related_resources_from_context = attach_remembered
    return True


async def _look_up(service: Any, flow_run: FlowRun) -> _Remembered:
    variable = cast("Any", TaskRunContext).__var__
    token = variable.set(None)
    try:
        resources = await related_resources_from_run_context(service._orchestration_client)
    finally:
        variable.reset(token)
    return _Remembered(
        weakref.ref(flow_run),
        [each for each in resources if each.role != "tag"],
        [each for each in resources if each.role == "tag"],
        get_current_settings().server.events.maximum_related_resources,
    )


def _is_all(remembered: _Remembered, event: Event, involved: set[str]) -> bool:
    """Whether what is remembered is what Prefect would add to an event of these resources.

    Not if its task run is none of them; if a resource that is remembered is one of them, whose
    tags do not count then; if it comes to more than there may be.
    """
    n_related = len(event.related) + len(remembered.resources) + len(remembered.tags)
    context = TaskRunContext.get()
    return (
        n_related <= remembered.n_at_most
        and not any(resource.id in involved for resource in remembered.resources)
        and (context is None or f"prefect.task-run.{context.task_run.id}" in involved)
    )
