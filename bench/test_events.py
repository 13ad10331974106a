"""States of task runs on their way to another process: zfast and Prefect's websocket, at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.conftest import Measure
from bench.measure import Peer, replay_clock
from bench.processes import PeerProcess, python_command
from bench.server import PrefectServer

PEERS = ["Prefect websocket", "zfast"]
LISTENERS = {"Prefect websocket": "websocket", "zfast": "zfast"}
STATES = 3
TASKS = 400
RATE = 200
FLOOD_EVENTS = 100_000
FLOOD_RATE = 20_000

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(300)]


class StatesPeer:
    """A flow whose states both peers listen to at the same time; the figures are one's.

    Args:
        name: Whose.
        server: The server that records the runs, and passes events on.
        runs: What both heard of the run of each round, shared by the peers.
        tasks: How many each flow runs.
    """

    def __init__(
        self, name: str, server: PrefectServer, runs: list[dict[str, dict[str, float]]], tasks: int
    ) -> None:
        self._name, self._server, self._runs, self._tasks = name, server, runs, tasks
        self._round = 0

    def round(self) -> dict[str, float]:
        """Run the flow, or take what the other peer's turn of this round has measured."""
        if len(self._runs) == self._round:
            self._runs.append(self._run())
        heard = self._runs[self._round][self._name]
        self._round += 1
        return {
            "seconds": heard["median_ms"] / 1e3,
            "p99": heard["p99_ms"] / 1e3,
            "arrived": heard["arrived"],
        }

    def _run(self) -> dict[str, dict[str, float]]:
        env = {**self._server.client_env, "XDG_RUNTIME_DIR": tempfile.mkdtemp(prefix="zfb-")}
        processes = {
            name: PeerProcess(python_command("states", argument), env)
            for name, argument in {**LISTENERS, "driver": "driver"}.items()
        }
        try:
            for name in LISTENERS:
                processes[name].ask()
            # The first run of a process imports, and makes clients.
            processes["driver"].ask(count=10, rate=RATE)
            for process in (processes[name] for name in LISTENERS):
                process.ask(count=10 * STATES)
            processes["driver"].ask(count=self._tasks, rate=RATE)
            return {
                name: processes[name].ask(count=self._tasks * STATES)  # type: ignore[misc]
                for name in LISTENERS
            }
        finally:
            for process in processes.values():
                process.close()

    def close(self) -> None:
        """Nothing is left between rounds."""


@pytest.mark.parametrize("duration", ["seconds", "p99"])
@pytest.mark.parametrize("peer", PEERS)
def test_state_to_another_process(
    peer: str,
    duration: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    runs: list[dict[str, dict[str, float]]] = []
    tasks = 30 if smoke else TASKS

    def open_peer(name: str) -> Peer:
        return StatesPeer(name, prefect_server, runs, tasks)

    measurements = measured(
        "states",
        {name: partial(open_peer, name) for name in PEERS},
        rounds=2,
        warmup_rounds=0,
    )
    arrived = measurements[peer].median("arrived")
    assert peer != "zfast" or arrived == 1, f"zfast lost {1 - arrived:.2%} of the states"
    row(
        measurements[peer],
        group="from a state's timestamp to another process, "
        + ("median" if duration == "seconds" else "p99"),
        peer=peer,
        reference="Prefect websocket",
        work=1,
        unit="messages",
        duration=duration,
        arrived=arrived,
    )


def test_a_reading_subscriber_loses_nothing(smoke: bool, tmp_path: Path) -> None:
    """Not a row: what is measured is that nothing is missing."""
    count = 2000 if smoke else FLOOD_EVENTS
    with tempfile.TemporaryDirectory(prefix="zfb-") as folder:
        drink = PeerProcess(python_command("states", "drink"))
        flood = PeerProcess(python_command("states", "flood"))
        try:
            drink.command(folder=folder)
            while not (Path(folder) / "listening").exists():
                pass
            done = flood.ask(folder=folder, count=count, rate=FLOOD_RATE)
            heard = drink.answer()
        finally:
            drink.close()
            flood.close()
    print(f"{done['rate']:.0f} events/s, {done['call_us']:.1f} µs a call, {heard}")
    assert heard == {"came": count, "lost": 0}
