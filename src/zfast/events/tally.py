"""A running tally of what events tell: runs by state, throughput, latencies, workers.

For views of the whole, such as ``zfast top``. Bounded; it knows no socket and no screen.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from zfast.events.event import Event, Gap, StateEvent, WorkerEvent

#: Throughput and latencies are of the last so many seconds, and of so many events at most.
WINDOW_S = 10.0
WINDOW_EVENTS = 5000
#: Runs and flow runs that are kept; the oldest go first.
RUNS = 20_000
FLOW_RUNS = 500
WORKERS = 500

#: The columns that states are counted in, by their type.
COLUMNS = ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_COLUMN = {"SCHEDULED": "PENDING", "PAUSED": "PENDING", "CANCELLING": "RUNNING"}


@dataclass(slots=True)
class FlowTally:
    """One flow run.

    Attributes:
        tasks: Its task runs by column; what they are now.
        retries: How many times a task run began again.
        cached: How many results were taken from the cache.
    """

    name: str
    run_name: str = ""
    state: str = ""
    state_type: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    cached: int = 0


@dataclass(slots=True)
class WorkerTally:
    """One process that reported states of task runs, ``host:pid``.

    Attributes:
        vitals: How it fares, where ``ZfastTaskRunner`` tells it.
    """

    running: set[str] = field(default_factory=set)
    ended: int = 0
    last_ns: int = 0
    vitals: WorkerEvent | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In milliseconds; None where nothing was measured."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @classmethod
    def of(cls, values_ms: Iterable[float]) -> Percentiles:
        """Those of some values."""
        ordered = sorted(values_ms)
        if not ordered:
            return cls()
        last = len(ordered) - 1
        return cls(*(ordered[round(last * part)] for part in (0.5, 0.95, 0.99)))


class Tally:
    """Threads: one at a time."""

    def __init__(self) -> None:
        self.flows: OrderedDict[str, FlowTally] = OrderedDict()
        self.workers: OrderedDict[str, WorkerTally] = OrderedDict()
        self.lost = 0
        #: Bytes of inputs of task runs that stayed where they were made, and that travelled.
        self.shared_nbytes = self.copied_nbytes = 0
        self._handed_over: deque[tuple[float, float]] = deque(maxlen=WINDOW_EVENTS)
        self.events = 0
        self._runs: OrderedDict[str, tuple[str, str, int, str]] = OrderedDict()
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW_EVENTS)
        self._durations_ms: deque[tuple[float, float]] = deque(maxlen=WINDOW_EVENTS)

    def add(self, event: Event, *, now_s: float | None = None) -> None:
        """Count one event. ``now_s`` is the monotonic time."""
        now_s = time.monotonic() if now_s is None else now_s
        if isinstance(event, Gap):
            self.lost += event.lost
        if isinstance(event, WorkerEvent):
            if event.is_final:
                self.workers.pop(event.worker, None)
            else:
                self._worker(event.worker).vitals = event
        if not isinstance(event, StateEvent):
            return
        self.events += 1
        if not event.replayed:
            self._recent.append((now_s, (time.time_ns() - event.state_ns) / 1e6))
        flow = self._flow(event)
        if event.kind == "flow-run":
            flow.run_name = event.run_name
            flow.state, flow.state_type = event.state_name, event.state_type
            if event.state_type == "RUNNING" and not flow.started_ns:
                flow.started_ns = event.state_ns
            flow.ended_ns = event.state_ns if event.is_final else 0
        else:
            self._add_task_run(event, flow, now_s)

    def throughput(self, now_s: float | None = None) -> float:
        """Transitions a second, over the last 10 s."""
        now_s = time.monotonic() if now_s is None else now_s
        recent = [when for when, _ in self._recent if when > now_s - WINDOW_S]
        if not recent:
            return 0.0
        span_s = WINDOW_S if len(recent) < WINDOW_EVENTS else max(now_s - recent[0], 1e-3)
        return len(recent) / span_s

    def handover_rate(self, now_s: float | None = None) -> float:
        """Bytes a second that task runs were given by others, over the last 10 s."""
        now_s = time.monotonic() if now_s is None else now_s
        recent = [nbytes for when, nbytes in self._handed_over if when > now_s - WINDOW_S]
        return sum(recent) / WINDOW_S

    def latency(self, now_s: float | None = None) -> Percentiles:
        """From a state's timestamp to here, over the last 10 s."""
        return _recent_percentiles(self._recent, now_s)

    def durations(self, now_s: float | None = None) -> Percentiles:
        """How long task runs that ended in the last 10 s were in their last Running state."""
        return _recent_percentiles(self._durations_ms, now_s)

    def totals(self) -> Counter[str]:
        """Task runs by column."""
        total: Counter[str] = Counter()
        for flow in self.flows.values():
            total.update(flow.tasks)
        return total

    def _add_task_run(self, event: StateEvent, flow: FlowTally, now_s: float) -> None:
        column = _COLUMN.get(event.state_type, event.state_type)
        before = self._runs.pop(event.run_id, None)
        if before is not None:
            flow_run_id, old_column, running_ns, old_worker = before
            known = self.flows.get(flow_run_id)
            if known is not None:
                known.tasks[old_column] -= 1
            if old_worker in self.workers:
                self.workers[old_worker].running.discard(event.run_id)
        else:
            running_ns = 0
        flow.tasks[column] += 1
        flow.retries += event.state_name == "Retrying"
        flow.cached += event.state_name == "Cached"
        worker = self._worker(event.worker)
        worker.last_ns = event.published_ns
        shared = sum(each.shared_nbytes for each in event.inputs)
        copied = sum(each.copied_nbytes for each in event.inputs)
        if not event.replayed and shared + copied:
            self.shared_nbytes += shared
            self.copied_nbytes += copied
            self._handed_over.append((now_s, shared + copied))
        if column == "RUNNING":
            worker.running.add(event.run_id)
            running_ns = event.state_ns
        elif event.is_final:
            worker.ended += 1
            if running_ns and not event.replayed:
                self._durations_ms.append((now_s, (event.state_ns - running_ns) / 1e6))
        self._runs[event.run_id] = (event.flow_run_id, column, running_ns, event.worker)
        if len(self._runs) > RUNS:
            self._runs.popitem(last=False)

    def _flow(self, event: StateEvent) -> FlowTally:
        key = event.flow_run_id
        flow = self.flows.get(key)
        if flow is None:
            flow = self.flows[key] = FlowTally(event.flow_name or "(no flow)")
            if len(self.flows) > FLOW_RUNS:
                self.flows.popitem(last=False)
        return flow

    def _worker(self, name: str) -> WorkerTally:
        worker = self.workers.get(name)
        if worker is None:
            worker = self.workers[name] = WorkerTally()
            if len(self.workers) > WORKERS:
                self.workers.popitem(last=False)
        return worker


def _recent_percentiles(values: Iterable[tuple[float, float]], now_s: float | None) -> Percentiles:
    now_s = time.monotonic() if now_s is None else now_s
    return Percentiles.of(value for when, value in values if when > now_s - WINDOW_S)
