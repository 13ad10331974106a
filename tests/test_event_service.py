"""How a worker's events get from Prefect's queue to the API: all of them, and in order."""

from __future__ import annotations

import prefect
import pytest
from prefect.events.worker import EventsWorker

from zfast.prefect.internals import event_service

SCRIPT = """
import os
import threading
from prefect.events import Event
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from zfast.prefect.internals.event_service import take_events_on_the_loop, wait_for_events_sent

assert take_events_on_the_loop(), "another Prefect inside: see event_service"
sent = []
arrived = threading.Event()

class Recording(NullEventsClient):
    async def _emit(self, event):
        if event.event == "bad":
            raise ValueError("not this one")
        sent.append((event.resource["by"], int(event.event)))
        arrived.set()

def emit(name, by="main"):
    service.send(Event(event=str(name), resource={"prefect.resource.id": "test", "by": by}))

def begin():
    global service
    service = EventsWorker.instance(Recording)
    EventsWorker.instance = lambda *_: service

begin()
"""


def test_all_that_many_threads_emit_is_sent_in_the_order_of_each(run_python):
    run_python(
        SCRIPT
        + """
def many(by):
    for i in range(2000):
        emit(i, by)
        if i % 100 == 0:
            assert wait_for_events_sent(60)

threads = [threading.Thread(target=many, args=(by,)) for by in "abc"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert wait_for_events_sent(60)
for by in "abc":
    assert [i for who, i in sent if who == by] == list(range(2000))
"""
    )


def test_what_nobody_waits_for_is_sent_too(run_python):
    run_python(
        SCRIPT
        + """
for i in range(20):
    arrived.clear()
    emit(i)
    assert arrived.wait(60)
assert len(sent) == 20
"""
    )


def test_an_event_that_cannot_be_sent_holds_up_no_other(run_python):
    run_python(
        SCRIPT
        + """
for name in (1, "bad", 2):
    emit(name)
assert wait_for_events_sent(60)
assert [i for _, i in sent] == [1, 2]
"""
    )


def test_what_is_emitted_last_is_sent_before_the_end(run_python):
    run_python(
        SCRIPT
        + """
for i in range(500):
    emit(i)
service.drain()
assert [i for _, i in sent] == list(range(500))
"""
    )


def test_what_a_task_run_was_given_is_let_go_of(run_python):
    run_python(
        SCRIPT
        + """
import contextvars
import gc
import time
import weakref

class Large: pass

given = contextvars.ContextVar("given")

def run():
    large = Large()
    given.set(large)
    emit(1)
    assert wait_for_events_sent(60)
    return weakref.ref(large)

emit(0)
assert wait_for_events_sent(60)
large = contextvars.copy_context().run(run)
deadline = time.monotonic() + 30  # the loop may be about to let go of it
while large() is not None and time.monotonic() < deadline:
    gc.collect()
assert large() is None
"""
    )


def test_a_fork_has_a_service_of_its_own(run_python):
    run_python(
        SCRIPT.replace("EventsWorker.instance = lambda *_: service", "")
        + """
emit(0)
service.wait_until_empty()
child = os.fork()
if not child:
    begin()
    emit(1)
    service.wait_until_empty()
    os._exit(0 if [i for _, i in sent] == [0, 1] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
emit(2)
service.wait_until_empty()
assert [i for _, i in sent] == [0, 2]
"""
    )


def test_another_prefect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    main_loop = EventsWorker._main_loop
    monkeypatch.setattr(prefect, "__version__", "3.9.0")
    assert not event_service.take_events_on_the_loop.__wrapped__()
    assert EventsWorker._main_loop is main_loop
