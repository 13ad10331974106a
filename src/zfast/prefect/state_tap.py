"""The tap: where the states of this process's runs come by, and go to the publishers.

A task pays some microseconds for each of its states: its event is made and handed to the publisher
on the task's own thread, before Prefect makes its own. Whatever goes wrong here is logged once and
fails no task.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
from prefect.context import FlowRunContext, TaskRunContext

from zfast.errors import ZfastError
from zfast.events.event import Kind, Published, StateEvent, WorkerEvent
from zfast.events.filters import current_environment
from zfast.events.publisher import Publisher
from zfast.events.sockets import client_security
from zfast.prefect import internals
from zfast.prefect.broadcast_options import BroadcastOptions, Route
from zfast.prefect.handed_over import handed_over_to
from zfast.prefect.internals import event_service, version

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import FlowRun, State, TaskRun
    from prefect.events.schemas.events import Event as PrefectEvent
    from prefect.flows import Flow

    from zfast.runner.statistics import ProcessStatistics

logger = logging.getLogger("zfast.events")

BROADCAST_VARIABLE = "ZFAST_BROADCAST"
#: A state's message is cut to so many characters: events are small.
MESSAGE_CHARS = 1000
_TASK_EVENT = "prefect.task-run."
_SEVERAL_FLOWS = 4096


class StateTap:
    """Where the states of this process's runs come by. One a process."""

    def __init__(self) -> None:
        self._inherited: str | None = os.environ.get(BROADCAST_VARIABLE)
        self._installed: bool | None = None
        #: In a forked child: the parent's publishers, which nobody may close here.
        self._parents: list[Publisher] = []
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._active: tuple[BroadcastOptions, ...] = ()
        self._publishers: dict[Route, Publisher] = {}
        self._host = self._worker = ""
        self._told = threading.local()
        self._last_flow_states: dict[object, object] = {}
        self._failed = False

    def begin_in_child(self) -> None:
        """After a fork nothing is broadcast; what is from now on has publishers of its own."""
        self._parents += self._publishers.values()
        self._begin()

    @property
    def is_active(self) -> bool:
        """Whether anything is broadcast."""
        return bool(self._active)

    @property
    def works(self) -> bool:
        """Whether Prefect is one that can be tapped."""
        return bool(self._installed)

    def add(self, new: BroadcastOptions) -> None:
        """Broadcast for one more."""
        with self._lock:
            if any(new is active for active in self._active):
                return
            if self._installed is None:
                self._install()
            self._host = socket.gethostname()
            self._worker = f"{self._host}:{os.getpid()}"
            self._open(new)
            self._active = (*self._active, new)
            self._tell_children()

    def wait_heard(self, timeout_s: float) -> None:
        """Wait, not for ever, until those who listen hear this process: before it can be killed."""
        deadline = time.monotonic() + timeout_s
        for publisher in [*self._publishers.values()]:
            publisher.wait_heard(deadline - time.monotonic())

    def discard(self, old: BroadcastOptions) -> None:
        """Broadcast for one less; the last one closes the publishers."""
        with self._lock:
            self._active = tuple(active for active in self._active if active is not old)
            self._tell_children()
            unused = {}
            if not self._active:
                unused, self._publishers = self._publishers, {}
        for publisher in unused.values():
            publisher.close()

    def close(self) -> None:
        """At the end of the process."""
        for active in self._active:
            self.discard(active)

    def on_task_state(self, task_run: TaskRun, state: State[Any]) -> None:
        """The listener of task runs' states."""
        if not self._active:
            return
        self._told.state_id = state.id
        try:
            if not event_service.events_are_forwarded():
                self._tell_task_state(task_run, state)
        except Exception:
            self._fail()

    def on_flow_state(self, flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
        """The listener of flow runs' states."""
        if not self._active:
            return
        try:
            # A state that the server did not change is told again by the engine.
            if self._last_flow_states.get(flow_run.id) == state.id:
                return
            if len(self._last_flow_states) > _SEVERAL_FLOWS:
                self._last_flow_states.clear()
            self._last_flow_states[flow_run.id] = state.id
            self._publish(
                Kind.FLOW_RUN.value,
                flow.name,
                state,
                run_id=str(flow_run.id),
                run_name=flow_run.name or "",
                name=flow.name,
                flow_run_id=str(flow_run.id),
                run_count=flow_run.run_count,
                tags=sorted(flow_run.tags),
            )
        except Exception:
            self._fail()

    def on_event(self, event: PrefectEvent) -> None:
        """The listener of Prefect's events: those of task runs that were not told by an engine."""
        if (
            not self._active
            or not event.event.startswith(_TASK_EVENT)
            or event.id == getattr(self._told, "state_id", None)
        ):
            return
        try:
            if not event_service.events_are_forwarded():
                self._tell_event(event)
        except Exception:
            self._fail()

    def tell_worker(self, worker: ProcessStatistics, flow_name: str, flow_run_id: str) -> None:
        """Tell how a worker of a flow fares."""
        try:
            self._send(
                lambda options: options.matches_worker(flow_name),
                lambda environment: WorkerEvent(
                    environment=environment,
                    worker=f"{self._host}:{worker.pid}",
                    state_name=worker.state,
                    flow_name=flow_name,
                    flow_run_id=flow_run_id,
                    memory_nbytes=worker.memory_nbytes,
                    arena_nbytes=worker.arena_nbytes,
                    lent_nbytes=worker.lent_nbytes,
                    leases=worker.leases,
                    queued=worker.queued,
                    replays=worker.replays,
                ),
            )
        except Exception:
            self._fail()

    def _tell_task_state(self, task_run: TaskRun, state: State[Any]) -> None:
        flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
        if task_context is not None and task_context.task_run.id == task_run.id:
            name = task_context.task.name
        else:
            name = task_run.task_key.rpartition("-")[0] or task_run.task_key
        flow = flow_context.flow if flow_context is not None else None
        given: dict[str, Any] = {}
        if state.type.value == "RUNNING":
            noted = handed_over_to(task_run)
            given = {"inputs": noted.inputs, "handover_ns": noted.handover_ns}
        self._publish(
            Kind.TASK_RUN.value,
            flow.name if flow is not None else "",
            state,
            run_id=str(task_run.id),
            run_name=task_run.name,
            name=name,
            flow_run_id=str(task_run.flow_run_id or ""),
            run_count=task_run.run_count,
            tags=sorted(task_run.tags),
            **given,
        )

    def _tell_event(self, event: PrefectEvent) -> None:
        run: dict[str, Any] = event.payload.get("task_run", {})
        related = {resource.role: resource for resource in event.related}
        flow, flow_run = related.get("flow"), related.get("flow-run")
        validated = event.payload["validated_state"]
        key = str(run.get("task_key", ""))
        self._publish(
            Kind.TASK_RUN.value,
            (flow.name or "") if flow is not None else "",
            _EventState(event.id, validated["type"], validated["name"], event.occurred,
                        validated.get("message")),
            run_id=event.resource.id.removeprefix(_TASK_EVENT),
            run_name=str(event.resource.name or ""),
            name=key.rpartition("-")[0] or key,
            flow_run_id=flow_run.id.removeprefix("prefect.flow-run.") if flow_run else "",
            run_count=int(run.get("run_count", 0)),
            tags=sorted(run.get("tags", [])),
        )  # fmt: skip

    def _publish(self, kind: str, flow_name: str, state: Any, **fields: Any) -> None:
        self._send(
            lambda options: options.matches(kind, flow_name, state),
            lambda environment: StateEvent(
                kind=kind,
                environment=environment,
                state_id=str(state.id),
                state_type=state.type.value,
                state_name=state.name or "",
                state_ns=_to_ns(state.timestamp),
                message=(state.message or "")[:MESSAGE_CHARS],
                flow_name=flow_name,
                worker=self._worker,
                **fields,
            ),
        )

    def _send(
        self, is_wanted: Callable[[BroadcastOptions], bool], make: Callable[[str], Published]
    ) -> None:
        """Make an event for each environment and route that wants it, and publish it there."""
        done: set[tuple[str, Route]] = set()
        for options in self._active:
            environment, route = options.environment or current_environment(), options.route
            if (environment, route) in done or not is_wanted(options):
                continue
            done.add((environment, route))
            publisher = self._publishers.get(route)
            if publisher is not None:
                publisher.publish(make(environment))

    def _install(self) -> None:
        self._installed = internals.tap_states(
            self.on_task_state, self.on_flow_state, self.on_event
        )
        if not self._installed:
            logger.warning(
                "this version of Prefect is not known to zfast: only flow runs of flows that are "
                "decorated with broadcast are broadcast, by their hooks, and no task runs; install "
                "prefect %s*",
                version.KNOWN_VERSION,
            )

    def _open(self, options: BroadcastOptions) -> None:
        route = options.route
        if route in self._publishers:
            return
        try:
            security = None
            if route.relay:
                security = client_security(
                    route.relay,
                    None,
                    insecure=route.insecure,
                    environment=options.environment,
                    key=route.key,
                )
            publisher = Publisher(relay=route.relay, security=security, insecure=route.insecure)
        except ZfastError as error:
            if not options.inherited:
                raise
            logger.error("states of this process do not reach the relay: %s", error)
            publisher = Publisher()
        self._publishers[route] = publisher

    def _tell_children(self) -> None:
        """Workers that this process starts broadcast the same."""
        if self._active:
            inherited = [msgspec.structs.replace(each, inherited=True) for each in self._active]
            os.environ[BROADCAST_VARIABLE] = msgspec.json.encode(inherited).decode()
        elif self._inherited is not None:
            os.environ[BROADCAST_VARIABLE] = self._inherited
        else:
            os.environ.pop(BROADCAST_VARIABLE, None)

    def _fail(self) -> None:
        if not self._failed:
            self._failed = True
            logger.exception("a state was not broadcast; later failures are not logged")


class _EventState(msgspec.Struct, frozen=True):
    """A state as an event tells it, with the names of Prefect's."""

    id: Any
    raw_type: str
    name: str
    timestamp: Any
    message: str | None

    @property
    def type(self) -> Any:
        return _TypeOfState(self.raw_type)


class _TypeOfState(msgspec.Struct, frozen=True):
    value: str


def _to_ns(timestamp: Any) -> int:
    # Whole microseconds: a float of seconds would lose them.
    return (int(timestamp.timestamp()) * 1_000_000 + int(timestamp.microsecond)) * 1000


process_tap = StateTap()
atexit.register(process_tap.close)


os.register_at_fork(after_in_child=process_tap.begin_in_child)
