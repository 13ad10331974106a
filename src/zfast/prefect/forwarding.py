"""Logs and events of task runs: from the workers, through the driver, to Prefect's API.

A worker has no API clients for them: its logs and events are notes to the hub, and the driver's
own Prefect services send them on, in order.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import Event
from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient
from prefect.logging.handlers import APILogWorker, set_api_log_sink
from prefect.utilities.engine import emit_task_run_state_change_event

if TYPE_CHECKING:
    from prefect.tasks import Task

logger = logging.getLogger("zfast.prefect")

LOG = "log"
EVENT = "event"


class _EventNotes:
    """Takes the place of the queue that Prefect's forwarding client puts events on."""

    def __init__(self, notify: Callable[[str, bytes], None]) -> None:
        self._notify = notify

    def put(self, item: tuple[str, Event]) -> None:
        self._notify(EVENT, item[1].model_dump_json().encode())


def forward_logs_and_events(notify: Callable[[str, bytes], None]) -> None:
    """In a worker: turn this process's API logs and events into notes."""
    set_api_log_sink(lambda log: notify(LOG, msgspec.json.encode(log)))
    # Prefect compares the client class by identity, so the queue is the seam, not the client.
    EventsWorker.set_client_override(
        ProcessPoolForwardingEventsClient, event_queue=_EventNotes(notify), item_type=EVENT
    )


def flush_forwarded_events() -> None:
    """In a worker: wait until every event emitted so far has become a note."""
    EventsWorker.instance().wait_until_empty()


class NoteForwarder:
    """In the driver: sends workers' logs and events on to Prefect's API.

    It works in a copy of the context it is made in, where Prefect finds the flow run's settings.
    Threads: made in one, then used by the hub's only.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._last_events: dict[bytes, Event] = {}

    def __call__(self, job_id: bytes, topic: str, data: memoryview) -> None:
        """Forward one note."""
        self._context.run(self._forward, job_id, topic, data)

    def forget(self, job_id: bytes) -> None:
        """Drop what is kept of a task run that has ended."""
        self._last_events.pop(job_id, None)

    def report_crash(self, job_id: bytes, state: State[Any], task: Task[Any, Any]) -> None:
        """Tell the API that a task run crashed, whose own engine did not live to say so."""
        self._context.run(self._emit_crash, UUID(bytes=job_id), state, task)

    def _emit_crash(self, task_run_id: UUID, state: State[Any], task: Task[Any, Any]) -> None:
        last = self._last_events.get(task_run_id.bytes)
        if last is None:  # it died before its first word
            task_run = TaskRun(
                id=task_run_id,
                name=f"{task.name}-{task_run_id.hex[-3:]}",
                task_key=task.task_key,
                dynamic_key=str(task_run_id),
                tags=list(task.tags),
            )
            before = None
        else:
            task_run = TaskRun.model_validate({**last.payload["task_run"], "id": task_run_id})
            before = State[Any].model_validate(
                {key: last.payload["validated_state"][key] for key in ("type", "name", "message")}
            )
        emit_task_run_state_change_event(task_run, before, state, follows=last)

    def _forward(self, job_id: bytes, topic: str, data: memoryview) -> None:
        if topic == LOG:
            APILogWorker.instance().send(msgspec.json.decode(data))
        elif topic == EVENT:
            self._send_event(job_id, Event.model_validate_json(bytes(data)))
        else:
            logger.warning("a worker sent a note on the unknown topic %r", topic)

    def _send_event(self, job_id: bytes, event: Event) -> None:
        if event.resource.id == f"prefect.task-run.{UUID(bytes=job_id)}":
            self._last_events[job_id] = event
        EventsWorker.instance().send(event)
