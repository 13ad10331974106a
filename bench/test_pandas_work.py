"""pandas work in a task and in a plain process: what the memory of a worker does for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from bench.conftest import Measure
from bench.flow_peer import FlowPeer
from bench.measure import Peer, replay_clock
from bench.processes import PeerProcess, python_command
from bench.server import PrefectServer

PEERS = {"plain process": None, "ThreadPool task": "ThreadPool", "zfast task": "zfast"}
#: 100 MB of float64; the work holds up to five times as much.
ROWS = 1_250_000
REPETITIONS = 3
WORK_TIMEOUT_S = 240.0

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(900)]


class PlainProcess:
    """A process that does nothing else."""

    def __init__(self, rows: int, repetitions: int) -> None:
        """Start it."""
        self._command = {"rows": rows, "repetitions": repetitions}
        self._process = PeerProcess(python_command("pandas_work"))

    def round(self) -> dict[str, float]:
        """Do the work a few times."""
        return self._process.ask(WORK_TIMEOUT_S, **self._command)

    def close(self) -> None:
        """End it."""
        self._process.close()


@pytest.mark.parametrize("peer", PEERS)
def test_pandas_work(
    peer: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    rows, repetitions = (ROWS // 100, 1) if smoke else (ROWS, REPETITIONS)

    def open_peer(name: str) -> Peer:
        runner = PEERS[name]
        if runner is None:
            return PlainProcess(rows, repetitions)
        return FlowPeer(
            runner, prefect_server, "pandas_work.in_a_task", rows=rows, repetitions=repetitions
        )

    measurements = measured(
        "pandas work",
        {name: partial(open_peer, name) for name in PEERS},
        rounds=5,
        warmup_rounds=0,
    )
    row(
        measurements[peer],
        group="pandas work, 100 MB",
        peer=peer,
        reference="plain process",
        work=1,
        unit="calls",
        minor_faults=measurements[peer].median("minor_faults"),
    )
