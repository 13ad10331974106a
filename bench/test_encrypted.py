"""A DataFrame to another process over tcp with CURVE: pyzmq, and a zfast channel with its keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.conftest import Measure
from bench.measure import Peer, replay_clock
from bench.processes import Pair, python_command
from bench.test_small_messages import endpoints

PEERS = ["pyzmq-multipart", "zfast-channel"]
MB = 1_000_000
#: Transfers a round, so that a round is long enough to be timed from outside.
COUNTS = {1: 20, 100: 1}

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(600)]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("megabytes", [1, pytest.param(100, marks=pytest.mark.same_code)])
def test_encrypted(
    peer: str,
    megabytes: int,
    smoke: bool,
    work_folder: Path,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    nbytes = MB if smoke else megabytes * MB
    count = 1 if smoke else COUNTS[megabytes]

    def open_pair(name: str) -> Peer:
        commands = [
            python_command("encrypted", role, name, nbytes, count)
            for role in ("receiver", "sender")
        ]
        return Pair(*commands, endpoints("tcp", work_folder, f"encrypted-{name}-{megabytes}"))

    measurements = measured(
        ("encrypted", megabytes),
        {name: partial(open_pair, name) for name in PEERS},
        rounds=7,
        warmup_rounds=1,
    )
    row(
        measurements[peer],
        group=f"DataFrame, {megabytes} MB, tcp with CURVE",
        peer=peer,
        reference="pyzmq-multipart",
        work=nbytes * count,
        unit="bytes",
    )
