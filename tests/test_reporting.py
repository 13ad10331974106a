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

from hub_jobs import settled
from zfast.prefect import reporting
from zfast.prefect.internals import event_service


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
    assert not event_service.wait_for_events_sent(60)
    assert time.monotonic() - start < 30


def test_what_was_sent_is_not_waited_for(prefect_api):
    assert event_service.wait_for_events_sent(60)


def test_many_crashes_at_once_are_reported_by_few_threads(prefect_api, monkeypatch):
    most, told = 0, []

    def look(*_):
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


def test_ends_are_told_first_and_each_thread_has_one_client(prefect_api, monkeypatch):
    go, told, clients = threading.Event(), [], set()

    def look(client, *_):
        clients.add(client)
        assert go.wait(30)

    def tell(run, _, state):
        told.append(state.name)

    def replay(client, _, state):
        look(client)
        told.append(state.name)

    monkeypatch.setattr(reporting, "_find_task_run", look)
    monkeypatch.setattr(reporting, "_report_state", replay)
    monkeypatch.setattr(reporting, "emit_task_run_state_change_event", tell)
    reporter = reporting.Reporter()
    for _ in range(5 * reporting.MAX_REPORTS):
        reporter.report_replay(uuid.uuid4(), 2, "lost")
    settled(lambda: len(clients) == reporting.MAX_REPORTS)
    for _ in range(10):
        reporter.report_crash(uuid.uuid4(), Crashed(), work)
    go.set()
    reporter.close()
    assert len(told) == 5 * reporting.MAX_REPORTS + 10
    # Only what was under way was before them, or beside them.
    assert told[3 * reporting.MAX_REPORTS :] == ["AwaitingRetry"] * (2 * reporting.MAX_REPORTS + 10)
    assert len(clients) == reporting.MAX_REPORTS
    assert all(client._closed for client in clients)
