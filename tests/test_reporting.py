"""What the API is told, where it cannot be told, or is told of very much at once."""

from __future__ import annotations

import threading
import time
import uuid

from prefect import task
from prefect.events import Event
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.states import Crashed

from zfast.prefect import internals, reporting


@task
def work() -> None: ...


def test_a_service_that_cannot_connect_is_not_waited_for(monkeypatch):
    class Refused(NullEventsClient):
        async def __aenter__(self):
            raise RuntimeError("HTTP 403")

    service = EventsWorker.instance(Refused)
    monkeypatch.setattr(EventsWorker, "instance", lambda *_: service)
    service.send(Event(event="test", resource={"prefect.resource.id": "test"}))
    start = time.monotonic()
    assert not internals.wait_for_events_sent(60)
    assert time.monotonic() - start < 30


def test_what_was_sent_is_not_waited_for(prefect_api):
    assert internals.wait_for_events_sent(60)


def test_many_crashes_at_once_are_reported_by_few_threads(monkeypatch):
    most, told = 0, []

    def look(task_run_id, _):
        nonlocal most
        most = max(
            most, sum(thread.name.startswith("zfast-report") for thread in threading.enumerate())
        )

    monkeypatch.setattr(reporting, "_find_task_run", look)
    monkeypatch.setattr(
        reporting, "emit_task_run_state_change_event", lambda run, *_: told.append(run.id)
    )
    reporter = reporting.Reporter()
    ids = [uuid.uuid4() for _ in range(500)]
    for task_run_id in ids:
        reporter.report_crash(task_run_id, Crashed(), work)
    reporter.close()
    assert sorted(told) == sorted(ids)
    assert 0 < most <= reporting.MAX_REPORTS
