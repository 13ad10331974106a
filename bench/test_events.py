"""States of task runs on their way to another process: zfast and Prefect's websocket, at once."""

from __future__ import annotations

import os
import signal
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
KINDS = ["not broadcast", "broadcast"]
#: A flow of a round has so many tasks of both kinds; so many subscribers never read.
FLOW_TASKS = 100
STUCK = 10

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
        folder = tempfile.TemporaryDirectory(prefix="zfb-")
        env = {**self._server.client_env, "XDG_RUNTIME_DIR": folder.name}
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
            folder.cleanup()

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


class TurnsPeer:
    """Tasks that are broadcast and tasks that are not, in turns; the figures are one kind's.

    They are of one flow, since two differ by more than what is looked for.

    Args:
        name: Whose.
        shared: The process, its subscribers and what was measured, shared by the peers.
        tasks: How many the flow has.
    """

    def __init__(self, name: str, shared: Turns, tasks: int) -> None:
        self._name, self._shared, self._tasks = name, shared, tasks
        self._round = 0

    def round(self) -> dict[str, float]:
        """Run a flow, or take what the other peer's turn of this round has measured."""
        runs = self._shared.runs
        if len(runs) == self._round:
            runs.append(self._shared.flows.ask(count=self._tasks))
        self._round += 1
        return {"seconds": runs[self._round - 1][self._name]}

    def close(self) -> None:
        """End what is shared."""
        self._shared.close()


class Turns:
    """A process that runs such flows, and one whose subscribers have joined it and never read."""

    def __init__(self, server: PrefectServer) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zfb-")
        env = {**server.client_env, "XDG_RUNTIME_DIR": self._folder.name}
        self.runs: list[dict[str, float]] = []
        self.flows = PeerProcess(python_command("states", "both"), env)
        self._stuck: PeerProcess | None = PeerProcess(python_command("states", "stuck"), env)
        self._stuck.ask(count=STUCK)
        os.kill(self._stuck.hello["pid"], signal.SIGSTOP)
        self.flows.ask(count=FLOW_TASKS)  # the first run imports

    def close(self) -> None:
        """End both, once."""
        stuck, self._stuck = self._stuck, None
        if stuck is not None:
            os.kill(stuck.hello["pid"], signal.SIGKILL)
            stuck.close()
            self.flows.close()
            self._folder.cleanup()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("peer", KINDS)
def test_tasks_whose_states_are_broadcast(
    peer: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    shared: list[Turns] = []

    def open_peer(name: str) -> Peer:
        if not shared:
            shared.append(Turns(prefect_server))
        return TurnsPeer(name, shared[0], 4 if smoke else FLOW_TASKS)

    measurements = measured(
        "broadcast", {name: partial(open_peer, name) for name in KINDS}, rounds=30, warmup_rounds=0
    )
    row(
        measurements[peer],
        group=f"no-op task, {STUCK} subscribers that never read",
        peer=peer,
        reference=KINDS[0],
        work=1,
        unit="tasks",
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
