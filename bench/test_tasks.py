"""Prefect tasks under task runners with two workers, against a real server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from bench.conftest import Measure
from bench.flow_peer import FlowPeer
from bench.measure import Peer, replay_clock
from bench.server import PrefectServer

PEERS = ["ThreadPool", "ProcessPool", "zfast", "Dask", "Ray"]
TASKS = 1000
#: Where a task takes some 70 ms, fewer do.
SLOW_RUNNER_TASKS = 48
#: So long a runner has for starting its workers, and more to take over from them.
WARMUP_S = 8.0
#: How a no-op task is timed: the name of the duration, and of the group of rows.
NOOP_GROUPS = {
    "seconds": "no-op task, 2 workers",
    "states sent": "no-op task until its states are sent, 2 workers",
}
#: As the flow makes them: four frames of ten float64 columns.
MAKERS, ROW_NBYTES = 4, 80
FRAME_ROWS = 50_000_000 // ROW_NBYTES

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(900)]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("duration", NOOP_GROUPS)
def test_noop_tasks(
    peer: str,
    duration: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    def open_peer(name: str) -> Peer:
        count = TASKS if name in ("ThreadPool", "zfast") else SLOW_RUNNER_TASKS
        warmup_s = WARMUP_S
        if smoke:
            count, warmup_s = 4, 0.0
        return FlowPeer(name, prefect_server, "flows.noop_tasks", count=count, warmup_s=warmup_s)

    measurements = measured(
        "no-op tasks",
        {name: partial(open_peer, name) for name in PEERS},
        rounds=4,
        warmup_rounds=0,
    )
    row(
        measurements[peer],
        group=NOOP_GROUPS[duration],
        peer=peer,
        reference="ThreadPool",
        work=1,
        unit="tasks",
        duration=duration,
    )


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("policy", ["plain", "NO_CACHE"])
def test_frames(
    peer: str,
    policy: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    rows = FRAME_ROWS // 50 if smoke else FRAME_ROWS

    def open_peer(name: str) -> Peer:
        return FlowPeer(name, prefect_server, "flows.frames", rows=rows)

    measurements = measured(
        "frames",
        {name: partial(open_peer, name) for name in PEERS},
        rounds=4,
        warmup_rounds=0,
    )
    row(
        measurements[peer],
        group=f"4 × 50 MB and a reduce, {'plain @task' if policy == 'plain' else policy}",
        peer=peer,
        reference="ThreadPool",
        work=1,
        unit="flows",
        duration=policy,
        peak_memory_ratio=measurements[peer].ratio(
            "driver_peak_nbytes", rows * ROW_NBYTES * MAKERS
        ),
    )
