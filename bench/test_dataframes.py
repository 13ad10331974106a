"""A DataFrame to another process, without shared memory: pyzmq, and a zfast channel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.conftest import Measure
from bench.measure import Peer, replay_clock
from bench.processes import Pair, python_command
from bench.test_small_messages import endpoints

PEERS = ["pyzmq-send_pyobj", "pyzmq-multipart", "zfast-channel"]
MB = 1_000_000
#: Transfers a round, so that a round is long enough to be timed from outside.
COUNTS = {1: 20, 10: 5, 100: 2}

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(600)]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize(
    ("megabytes", "keep"),
    [
        (1, 0),
        pytest.param(10, 0, marks=pytest.mark.same_code),
        pytest.param(100, 0, marks=pytest.mark.same_code),
        pytest.param(100, 8, marks=pytest.mark.same_code),
    ],
)
def test_dataframes(
    peer: str,
    transport: str,
    megabytes: int,
    keep: int,
    smoke: bool,
    work_folder: Path,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    nbytes = MB if smoke else megabytes * MB
    count = 1 if smoke else COUNTS[megabytes]

    def open_pair(name: str) -> Peer:
        commands = [
            python_command("dataframes", role, name, nbytes, count, keep)
            for role in ("receiver", "sender")
        ]
        return Pair(*commands, endpoints(transport, work_folder, f"{name}-{megabytes}-{keep}"))

    measurements = measured(
        ("dataframes", megabytes, keep, transport),
        {name: partial(open_pair, name) for name in PEERS},
        rounds=11,
        # Enough for the receiver to hold all that it keeps.
        warmup_rounds=max(2, keep // count + 1),
    )
    kept = f", last {keep} kept" if keep else ""
    row(
        measurements[peer],
        group=f"DataFrame, {megabytes} MB, {transport}{kept}",
        peer=peer,
        reference="pyzmq-multipart",
        work=nbytes * count,
        unit="bytes",
    )
