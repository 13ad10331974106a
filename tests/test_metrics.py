"""Metrics of events, read as Prometheus reads them; the tally, and what zfast top shows of it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from rich.console import Console

from events_process import make_event
from test_ip_family import needs_ipv6
from zfast.cli.top_screen import draw
from zfast.errors import ConfigError
from zfast.events.event import Gap, Input, StateEvent, WorkerEvent
from zfast.events.publisher import Publisher
from zfast.events.tally import RUNS, Tally
from zfast.metrics import EventMetrics, PrometheusPage

DASHBOARD = Path(__file__).parents[1] / "examples" / "grafana-dashboard.json"
_ZFAST = "import sys; sys.argv[0] = 'zfast'; from zfast.cli import main; main()"


def events() -> list[StateEvent | Gap]:
    """A flow run with three task runs: done, failed at the second try, under way."""
    made: list[StateEvent | Gap] = []
    for number, states in enumerate(
        (
            ("Pending", "Running", "Completed"),
            ("Pending", "Running", "Retrying", "Failed"),
            ("Pending", "Running"),
        )
    ):
        for at, state in enumerate(states):
            event = make_event(number, state=state)
            event.state_type = {"Pending": "PENDING"}.get(state, event.state_type)
            event.state_ns += at * 10_000_000 - 100_000_000
            event.flow_run_id = "flow-run-1"
            event.worker = "elsewhere:1"
            made.append(event)
    return [*made, Gap(publisher="", lost=3)]


def given() -> StateEvent:
    """A task run that was given 5 MiB in place and 1 MiB as a copy."""
    event = make_event(9)
    event.inputs = [Input(run_id="run-1", shared_nbytes=5 << 20, copied_nbytes=1 << 20)]
    event.handover_ns = 2_000_000
    return event


def driver(replays: int) -> WorkerEvent:
    return WorkerEvent(
        environment="default", worker="host:1", state_name="Driver", flow_name="etl",
        flow_run_id="flow-run-1", memory_nbytes=100 << 20, arena_nbytes=64 << 20, leases=3,
        queued=4, replays=replays,
    )  # fmt: skip


def test_hand_overs_and_workers_are_counted() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    counted = EventMetrics(provider.get_meter("test"))
    tally = Tally()
    for event in (given(), driver(replays=1), driver(replays=3), driver(replays=3)):
        counted.add(event)
        tally.add(event, now_s=100.0)
    data = reader.get_metrics_data()
    assert data is not None
    values = {
        (metric.name, *(point.attributes or {}).values()): getattr(point, "value", None)
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }
    assert values["zfast.handover.bytes", "etl", "descriptor"] == 5 << 20
    assert values["zfast.handover.bytes", "etl", "copy"] == 1 << 20
    assert values["zfast.task.redeliveries", "etl"] == 3
    assert values["zfast.worker.memory", "host:1"] == 100 << 20
    assert values["zfast.runner.queue", "etl"] == 4
    provider.shutdown()
    assert tally.handover_rate(now_s=101.0) == pytest.approx((6 << 20) / 10)
    assert (tally.shared_nbytes, tally.copied_nbytes) == (5 << 20, 1 << 20)
    vitals = tally.workers["host:1"].vitals
    assert vitals is not None
    assert vitals.queued == 4


def test_instruments_count_what_events_tell() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    counted = EventMetrics(provider.get_meter("test"))
    for event in events():
        counted.add(event)
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: list(metric.data.data_points)
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert sum(point.value for point in points["zfast.state.transitions"]) == 9
    assert [point.value for point in points["zfast.runs.active"]] == [1]
    assert [point.value for point in points["zfast.events.missing"]] == [3]
    assert sum(point.count for point in points["zfast.state.duration"]) == 3
    assert sum(point.count for point in points["zfast.state.latency"]) == 9
    provider.shutdown()


def test_the_page_is_what_the_dashboard_asks_for() -> None:
    with PrometheusPage(port=0) as page:
        for event in [*events(), given(), driver(replays=1)]:
            page.metrics.add(event)
        with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(ConfigError, match="another port"):
            PrometheusPage(port=page.port)
    with pytest.raises(ConfigError, match="give an address that this host has"):
        PrometheusPage(port=0, host="192.0.2.1")
    names = {line.split("{")[0] for line in text.splitlines() if line.startswith("zfast_")}
    dashboard = json.loads(DASHBOARD.read_text())
    asked = " ".join(
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    )
    used = {name for name in names if name in asked}
    assert {name.split("(")[-1] for name in _metric_names(asked)} == used


def _metric_names(expression: str) -> set[str]:
    return set(re.findall(r"zfast_\w+", expression))


def test_a_tally_counts_each_run_where_it_is_now() -> None:
    tally = Tally()
    for event in events():
        tally.add(event, now_s=100.0)
    (flow,) = tally.flows.values()
    assert +flow.tasks == {"COMPLETED": 1, "FAILED": 1, "RUNNING": 1}
    assert (flow.retries, tally.lost, tally.events) == (1, 3, 9)
    assert tally.throughput(now_s=101.0) == pytest.approx(0.9)
    assert tally.throughput(now_s=200.0) == 0
    (worker,) = tally.workers.values()
    assert (len(worker.running), worker.ended) == (1, 2)
    durations = tally.durations(now_s=101.0)
    assert durations.p50_ms == pytest.approx(10, abs=2)


def test_a_tally_is_bounded() -> None:
    tally = Tally()
    for number in range(RUNS + 100):
        tally.add(make_event(number), now_s=0.0)
    assert len(tally._runs) == RUNS


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (100, 30)])
def test_top_fits_its_screen(width: int, height: int) -> None:
    tally = Tally()
    for number in range(2000):
        event = make_event(number, flow=f"flow-with-a-long-name-{number % 50}")
        event.flow_run_id = str(number % 50)
        event.worker = f"host:{number % 40}"
        tally.add(event)
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(draw(tally, width=width, height=height))
    lines = console.export_text().splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(
    "milliseconds", [0.0, 9.994, 9.995, 99.94, 99.95, 9999.4, 9999.5, 999_499, 999_500, 6e7, 3e9]
)
def test_top_says_latencies_on_one_line(milliseconds: float) -> None:
    event = make_event(0, state="Running")
    event.state_ns = time.time_ns() - round(milliseconds * 1e6)
    tally = Tally()
    tally.add(event)
    ended = make_event(0, state="Completed")
    ended.state_ns = event.state_ns + round(milliseconds * 1e6)
    tally.add(ended)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(draw(tally, width=80, height=24))
    lines = console.export_text().splitlines()
    assert re.match(r"latency ms  (p\d\d \S+  ?){3} ?task ms (p\d\d [^ –]{2,4} *){3}$", lines[1])
    assert lines[2].startswith("hand-over")


def test_top_filters() -> None:
    tally = Tally()
    for number, flow in enumerate(["etl", "report"]):
        event = make_event(number, flow=flow)
        event.flow_run_id = flow
        tally.add(event)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(draw(tally, width=80, height=24, pattern="rep"))
    text = console.export_text()
    assert "report" in text
    assert "etl" not in text


@pytest.fixture
def publisher(short_folder: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    with Publisher() as made:
        for event in events():
            if isinstance(event, StateEvent):
                made.publish(event)
        yield made


def test_watch_prints_a_json_object_a_line(publisher: Publisher) -> None:
    done = run_zfast("watch", "--json", "--count", "3")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["joined", "state", "state", "state"]
    assert [line["state_name"] for line in lines[1:]] == ["Completed", "Failed", "Running"]


def test_watch_prints_lines_for_people(publisher: Publisher) -> None:
    done = run_zfast("watch", "--state", "failed", "--count", "1")
    assert "Failed" in done.stdout
    assert "etl" in done.stdout


def test_top_once(publisher: Publisher) -> None:
    figures = json.loads(run_zfast("top", "--once", "--json").stdout)
    assert figures["tasks"] == {"COMPLETED": 1, "FAILED": 1, "RUNNING": 1}
    assert "zfast top" in run_zfast("top", "--once").stdout


def test_top_is_as_wide_as_COLUMNS_says(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    _, _, _, _, heads, *_ = run_zfast("top", "--once").stdout.splitlines()
    assert heads.startswith("flow run")
    assert len(heads.rstrip()) > 100


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_metrics_verb(host: str, publisher: Publisher) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ZFAST, "metrics", "--host", host, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    with urllib.request.urlopen(url) as answer:
        assert answer.status == 200
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def run_zfast(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", _ZFAST, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_page_and_its_events(publisher: Publisher) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ZFAST, "ui", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    with urllib.request.urlopen(url) as answer:
        assert b"EventSource" in answer.read()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    elsewhere = urllib.request.Request(url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(elsewhere)
    with urllib.request.urlopen(url + "events", timeout=20) as answer:
        line = answer.readline()
    states = json.loads(line.removeprefix(b"data: "))
    assert [state["state_name"] for state in states] == ["Completed", "Failed", "Running"]
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
