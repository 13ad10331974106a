"""Events of a worker say of which run they are, whatever was remembered of it."""

from __future__ import annotations

import prefect
import pytest
from prefect.events.worker import EventsWorker

from zfast.prefect.internals import related_resources

SCRIPT = """
import asyncio
from types import SimpleNamespace
import prefect.events.worker
from prefect import flow, tags, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event
from prefect.events.worker import EventsWorker
from zfast.prefect.internals.related_resources import remember_related_resources

by_prefect = EventsWorker.attach_related_resources_from_context
assert remember_related_resources(), "another Prefect inside: see related_resources"
remembering = EventsWorker.attach_related_resources_from_context
looks = 0

async def look(*args, _look=prefect.events.worker.related_resources_from_run_context, **options):
    global looks
    looks += 1
    return await _look(*args, **options)

prefect.events.worker.related_resources_from_run_context = look
service = SimpleNamespace()

def tag(name):
    return {"prefect.resource.id": f"prefect.tag.{name}", "prefect.resource.role": "tag"}

def events():
    flow_run = FlowRunContext.get() and FlowRunContext.get().flow_run
    yield dict(resource={"prefect.resource.id": "some.thing"})
    yield dict(resource={"prefect.resource.id": "x", "prefect.resource.lineage-group": "global"})
    if flow_run:
        yield dict(resource={"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"})
    if TaskRunContext.get():
        task_run = TaskRunContext.get().task_run
        own = {"prefect.resource.id": f"prefect.task-run.{task_run.id}"}
        yield dict(resource=own)
        yield dict(resource=own, related=[tag(each) for each in task_run.tags])
        yield dict(resource=own, related=[tag("another")])

async def compare():
    async with get_client() as client:
        service._orchestration_client = client
        for fields in events():
            ours, theirs = (Event(event="test", **fields) for _ in range(2))
            await by_prefect(service, theirs)
            await remembering(service, ours)
            assert ours.related == theirs.related, (ours.related, theirs.related)

@task
def plain():
    asyncio.run(compare())

@task(tags={"a-tag", "b-tag"})
def tagged():
    asyncio.run(compare())
    plain()

@flow
def inner():
    asyncio.run(compare())
    tagged()

@flow
def outer():
    for _ in range(2):
        plain()
        tagged()
    with tags("flow-tag"):
        inner()
        plain()
    asyncio.run(compare())

asyncio.run(compare())
with tags("outer-tag"):
    outer()
outer()
"""


def test_what_is_remembered_is_what_prefect_would_find(run_python):
    run_python(SCRIPT)


def test_no_event_gets_more_than_it_may_have(run_python, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_EVENTS_MAXIMUM_RELATED_RESOURCES", "5")
    run_python(SCRIPT)


def test_a_task_runs_own_states_need_no_look(run_python):
    run_python(
        SCRIPT
        + """
@task(tags={"its-own"})
def work():
    global looks
    own = {"prefect.resource.id": f"prefect.task-run.{TaskRunContext.get().task_run.id}"}
    related = [{"prefect.resource.id": "prefect.tag.its-own", "prefect.resource.role": "tag"}]
    looks = 0
    for _ in range(10):
        event = Event(event="test", resource=own, related=related)
        asyncio.run(remembering(service, event))
        assert {each.role for each in event.related} == {"flow-run", "flow", "tag"}
    assert looks == 0

@flow
def look_once():
    asyncio.run(compare())
    work()

look_once()
"""
    )


def test_another_prefect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = EventsWorker.attach_related_resources_from_context
    monkeypatch.setattr(prefect, "__version__", "3.9.0")
    assert not related_resources.remember_related_resources.__wrapped__()
    assert EventsWorker.attach_related_resources_from_context is attach


def test_a_flows_result_is_not_kept(run_python):
    run_python(
        """
import gc
import time
import weakref
from prefect import flow, task
from zfast.prefect.internals import event_service, related_resources

assert related_resources.remember_related_resources()
assert event_service.take_events_on_the_loop()

class Large: pass

@task
def small(): pass

@flow
def make():
    small()
    large = Large()
    made.append(weakref.ref(large))
    return large

made = []
small()
assert event_service.wait_for_events_sent(60)
for _ in range(2):  # Prefect itself keeps the first one
    make()
    assert event_service.wait_for_events_sent(60)
deadline = time.monotonic() + 30  # a thread may be about to let go of it
while made[1]() is not None and time.monotonic() < deadline:
    gc.collect()
assert made[1]() is None
"""
    )
