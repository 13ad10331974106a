"""Metrics of what events tell, as OpenTelemetry instruments, and a Prometheus page of them.

The instruments belong to whatever meter is given, so that they go where a program's others go.
``serve_prometheus`` needs ``pip install 'zfast[metrics]'``.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from opentelemetry import metrics

from zfast.errors import ConfigError
from zfast.events.event import Event, Gap, StateEvent, WorkerEvent

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from typing_extensions import Self

#: Runs whose last state is kept, for how long they were in it.
RUNS = 20_000
DEFAULT_PORT = 9464
_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_DURATION_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)


class EventMetrics:
    """Instruments that events are counted in. Threads: one at a time.

    ====================================  =========  ==================================
    ``zfast.state.transitions``           counter    environment, kind, flow, state, type
    ``zfast.state.latency``               histogram  s from a state to here; environment, kind
    ``zfast.state.duration``              histogram  s that task runs were running; flow, task
    ``zfast.runs.active``                 up-down    runs under way; environment, kind, flow
    ``zfast.events.missing``              counter    events that were told to be missing
    ``zfast.handover.bytes``              counter    inputs of task runs; flow, path
    ``zfast.handover.duration``           histogram  s until a task run had its inputs; flow
    ``zfast.task.redeliveries``           counter    task runs begun again, worker dead; flow
    ``zfast.worker.memory``               gauge      bytes; worker
    ``zfast.worker.arena``                gauge      bytes of shared memory; worker
    ``zfast.worker.leases``               gauge      publications it reads; worker
    ``zfast.runner.queue``                gauge      task runs that have not ended; flow
    ====================================  =========  ==================================

    Args:
        meter: Whose instruments they become; None is the global provider's.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or metrics.get_meter("zfast")
        self._transitions = meter.create_counter(
            "zfast.state.transitions", description="States that runs came to be in"
        )
        self._latency = meter.create_histogram(
            "zfast.state.latency",
            unit="s",
            description="From a state's timestamp to the subscriber",
            explicit_bucket_boundaries_advisory=_LATENCY_S,
        )
        self._duration = meter.create_histogram(
            "zfast.state.duration",
            unit="s",
            description="How long task runs were running",
            explicit_bucket_boundaries_advisory=_DURATION_S,
        )
        self._active = meter.create_up_down_counter(
            "zfast.runs.active", description="Runs that are under way"
        )
        self._missing = meter.create_counter(
            "zfast.events.missing", description="Events that were lost on their way"
        )
        self._handed_over = meter.create_counter(
            "zfast.handover.bytes",
            unit="By",
            description="Inputs of task runs, by path: descriptor or copy",
        )
        self._handover = meter.create_histogram(
            "zfast.handover.duration",
            unit="s",
            description="How long task runs waited for their inputs",
            explicit_bucket_boundaries_advisory=_LATENCY_S,
        )
        self._redeliveries = meter.create_counter(
            "zfast.task.redeliveries", description="Task runs whose worker died, begun again"
        )
        self._memory = meter.create_gauge(
            "zfast.worker.memory", unit="By", description="Memory, without what is shared"
        )
        self._arena = meter.create_gauge(
            "zfast.worker.arena", unit="By", description="Shared memory that a process owns"
        )
        self._leases = meter.create_gauge(
            "zfast.worker.leases", description="Publications that a process reads"
        )
        self._queue = meter.create_gauge(
            "zfast.runner.queue", description="Task runs with a runner that have not ended"
        )
        self._replays: OrderedDict[str, int] = OrderedDict()
        self._runs: OrderedDict[str, StateEvent] = OrderedDict()

    def add(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Gap):
            self._missing.add(max(1, event.lost))
        if isinstance(event, WorkerEvent):
            self._add_worker(event)
        if not isinstance(event, StateEvent):
            return
        where = {
            "environment": event.environment,
            "kind": event.kind,
            "flow": event.flow_name,
        }
        before = self._runs.pop(event.run_id, None)
        was_active = before is not None and not before.is_final
        self._active.add(int(not event.is_final) - int(was_active), where)
        if not event.replayed:
            # What was there before is no transition of ours.
            self._transitions.add(1, {**where, "state": event.state_name, "type": event.state_type})
            self._add_handover(event)
            self._latency.record(
                max(0.0, (time.time_ns() - event.state_ns) / 1e9),
                {"environment": event.environment, "kind": event.kind},
            )
        if before is not None and before.state_type == "RUNNING" and event.kind == "task-run":
            self._duration.record(
                max(0.0, (event.state_ns - before.state_ns) / 1e9),
                {"flow": event.flow_name, "task": event.name, "type": event.state_type},
            )
        self._runs[event.run_id] = event
        if len(self._runs) > RUNS:
            self._runs.popitem(last=False)

    def _add_handover(self, event: StateEvent) -> None:
        flow = {"flow": event.flow_name}
        if event.inputs and event.handover_ns:
            shared = sum(each.shared_nbytes for each in event.inputs)
            copied = sum(each.copied_nbytes for each in event.inputs)
            self._handed_over.add(shared, {**flow, "path": "descriptor"})
            self._handed_over.add(copied, {**flow, "path": "copy"})
            self._handover.record(event.handover_ns / 1e9, flow)

    def _add_worker(self, event: WorkerEvent) -> None:
        worker = {"worker": event.worker}
        self._memory.set(event.memory_nbytes, worker)
        self._arena.set(event.arena_nbytes, worker)
        self._leases.set(event.leases, worker)
        if event.state_name == "Driver":
            flow = {"flow": event.flow_name}
            self._queue.set(event.queued, flow)
            before = self._replays.get(event.flow_run_id, 0)
            self._redeliveries.add(max(0, event.replays - before), flow)
            self._replays[event.flow_run_id] = event.replays
            if len(self._replays) > RUNS:
                self._replays.popitem(last=False)


class PrometheusPage:
    """``EventMetrics`` at ``http://host:port/metrics``. A context manager.

    Args:
        port: 0 lets the system choose.
        host: Of this host; loopback unless it is said otherwise, for the page asks nobody who he
            is.

    Attributes:
        metrics: Where to add events.
        port: Where it listens.
        url: Where it is read.

    Raises:
        ConfigError: A package is missing, the port is taken, or the host is not this one.
    """

    def __init__(self, port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> None:
        try:
            from opentelemetry.exporter.prometheus import PrometheusMetricReader
            from opentelemetry.sdk.metrics import MeterProvider
            from prometheus_client import start_http_server
        except ImportError as error:
            raise ConfigError(
                f"the Prometheus page needs {error.name}", hint="pip install 'zfast[metrics]'"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server, self._thread = start_http_server(port, addr=host)
        except OSError as error:
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            raise ConfigError(
                f"the metrics cannot be served at {shown}:{port}: {error.strerror}",
                hint="choose another port" if taken else "give an address that this host has",
            ) from error
        self.port = self._server.server_port
        self.url = f"http://{shown}:{self.port}/metrics"
        self._provider = MeterProvider(metric_readers=[PrometheusMetricReader()])
        self.metrics = EventMetrics(self._provider.get_meter("zfast"))

    def close(self) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._provider.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
