"""Prefect tasks under task runners with two workers, against a real server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bench.conftest import Measure
from bench.measure import Peer, UnavailablePeerError, replay_clock
from bench.processes import PeerProcess, python_command
from bench.server import PrefectServer

PEERS = ["ThreadPool", "ProcessPool", "zfast", "Dask", "Ray"]
#: Peers that come with an integration of Prefect's.
PACKAGES = {"Dask": "prefect_dask", "Ray": "prefect_ray"}
TASKS = 200
#: Where a task takes some 70 ms, fewer do.
SLOW_RUNNER_TASKS = 40
FRAME_ROWS = 50_000_000 // (8 * 10)
FLOW_TIMEOUT_S = 180.0

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(900)]


class FlowPeer:
    """A process that runs a flow each round; durations are divided by `per`."""

    def __init__(self, name: str, server: PrefectServer, per: int, flow: str, **parameters: Any):
        """Start the process."""
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UnavailablePeerError(f"{PACKAGES[name]} is not installed")
        self._server = server
        self._per = per
        self._command = {"flow": flow, "parameters": parameters}
        self._process = PeerProcess(python_command("tasks", name), server.client_env)

    def round(self) -> dict[str, float]:
        """Run the flow once, on a server that has nothing else to do."""
        self._server.drain()
        answer = self._process.ask(FLOW_TIMEOUT_S, **self._command)
        return {"seconds": answer["seconds"] / self._per}

    def close(self) -> None:
        """End the process."""
        self._process.close()


@pytest.mark.parametrize("peer", PEERS)
def test_noop_tasks(
    peer: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    def open_peer(name: str) -> Peer:
        count = TASKS if name in ("ThreadPool", "zfast") else SLOW_RUNNER_TASKS
        if smoke:
            count = 4
        return FlowPeer(name, prefect_server, count, "noop_tasks", count=count)

    measurements = measured(
        "no-op tasks",
        {name: partial(open_peer, name) for name in PEERS},
        rounds=5,
        warmup_rounds=1,
    )
    row(
        measurements[peer],
        group="no-op task, 2 workers",
        peer=peer,
        reference="ThreadPool",
        work=1,
        unit="tasks",
    )


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    "cached",
    [
        pytest.param(True, id="plain"),
        pytest.param(False, id="NO_CACHE", marks=pytest.mark.same_code),
    ],
)
def test_frames(
    peer: str,
    cached: bool,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    rows = FRAME_ROWS // 50 if smoke else FRAME_ROWS

    def open_peer(name: str) -> Peer:
        return FlowPeer(name, prefect_server, 1, "frames", rows=rows, cached=cached)

    measurements = measured(
        ("frames", cached),
        {name: partial(open_peer, name) for name in PEERS},
        rounds=5,
        warmup_rounds=1,
    )
    row(
        measurements[peer],
        group=f"4 × 50 MB and a reduce, {'plain @task' if cached else 'NO_CACHE'}",
        peer=peer,
        reference="ThreadPool",
        work=1,
        unit="flows",
    )
