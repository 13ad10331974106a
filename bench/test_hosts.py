"""From the end of the task that made a frame to the task that has read it, on another host.

Hosts are processes on this machine that share no memory and meet over tcp of its loopback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from bench.conftest import Measure
from bench.flow_peer import FlowPeer
from bench.measure import Peer, replay_clock
from bench.server import PrefectServer

BASE_NBYTES = 800
MB = 1_000_000
#: Chains of each size a round.
SIZES = {"1 MB": (MB, 9), "100 MB": (100 * MB, 7)}
#: Rows, and by what traffic between them is protected, in either.
PEERS = {
    "no protection": {"Dask": "Dask", "zfast": "zfast, two hosts"},
    "encrypted": {"Dask, TLS": "Dask, TLS", "zfast, CURVE": "zfast, two hosts, CURVE"},
}
#: What a smoke run takes.
SMOKE = ("1 MB", "encrypted")
CASES = [
    pytest.param(
        *(size, guard, peer),
        id=f"{size}-{peer}",
        marks=[] if (size, guard) == SMOKE else [pytest.mark.same_code],
    )
    for size in SIZES
    for guard, peers in PEERS.items()
    for peer in peers
]

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(1500)]


@pytest.mark.parametrize(("size", "guard", "peer"), CASES)
def test_hosts(
    size: str,
    guard: str,
    peer: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    chains = [(BASE_NBYTES, 9), *SIZES.values()]
    plan = {"numpy": [(BASE_NBYTES, 1), (MB, 1)] if smoke else chains}
    few = {"trials": 1, "unseen": 0} if smoke else {"trials": 2, "unseen": 2}

    def open_peer(runner: str) -> Peer:
        return FlowPeer(runner, prefect_server, "handover.handover", plan=plan, **few)

    guards = SMOKE[1:] if smoke else PEERS
    runners = {name: runner for of in guards for name, runner in PEERS[of].items()}
    measurements = measured(
        "hosts",
        {name: partial(open_peer, runner) for name, runner in runners.items()},
        rounds=6,
        warmup_rounds=0,
    )
    nbytes, _ = SIZES[size]
    measurement = measurements[peer]
    row(
        measurement,
        group=f"to another host, {size}, {guard}, consumer has read all",
        peer=peer,
        reference=next(iter(PEERS[guard])),
        work=nbytes,
        unit="bytes",
        duration=f"read numpy {nbytes}",
        base=measurement.values(f"read numpy {BASE_NBYTES}") or None,
        elsewhere=measurement.median(f"elsewhere numpy {nbytes}"),
    )
