"""From the end of the task that made a frame to the task that reads it, on one host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bench.conftest import Measure
from bench.flow_peer import FlowPeer
from bench.measure import Peer, replay_clock
from bench.processes import PeerProcess, python_command
from bench.server import PrefectServer

BASE_NBYTES = 800
MB = 1_000_000
#: Chains a round, before `MORE_CHAINS`.
SIZES = {"1 MB": (MB, 7), "100 MB": (100 * MB, 5), "1 GB": (1000 * MB, 3)}
BASE_CHAINS = 9
#: Where what is measured is less than what one chain differs from the next, and chains are short.
MORE_CHAINS = {"zfast": 4}
#: Sizes that are measured in the same flow runs, and passes.
TOGETHER = {"1 MB": ("small", 4), "100 MB": ("small", 4), "1 GB": ("1 GB", 3)}
#: Rows: the runner, and what kind of memory its frames are made in.
ROWS = {
    "memcpy, warm": ("memcpy", ""),
    "ThreadPool": ("ThreadPool", "numpy"),
    "ProcessPool": ("ProcessPool", "numpy"),
    "zfast": ("zfast", "numpy"),
    "zfast, np.zeros": ("zfast", "zeros"),
    "zfast, made in a thread": ("zfast", "thread"),
    "zfast, Arrow strings": ("zfast", "strings"),
    "Dask": ("Dask", "numpy"),
    "Ray": ("Ray", "numpy"),
    "Ray, Arrow strings": ("Ray", "strings"),
}
#: At 1 GB, a process pool's copies in the driver take half a minute.
TOO_SLOW = {("ProcessPool", "1 GB")}
#: Memory of a kind that the runner treats as any other is not made at 1 GB.
KINDS_OF_1_GB = {"", "numpy", "thread"}

#: The driver's peak is that of the largest payload in its flow run; smaller ones do not show.
MEMORY_MIN_NBYTES = 100 * MB
#: Slow to start, and its tasks are run by the smoke run of another group.
NOT_IN_SMOKE = "ProcessPool"

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(1500)]


class MemcpyPeer:
    """The limit: one copy between memory that is there already, once for each size."""

    def __init__(self, sizes: list[int]) -> None:
        """Start the process."""
        self._sizes = sizes
        self._process = PeerProcess(python_command("memcpy"))

    def round(self) -> dict[str, float]:
        """Copy each size, and read all of the copy."""
        measured: dict[str, float] = {}
        for nbytes in self._sizes:
            answer = self._process.ask(nbytes=nbytes)
            measured[f"start  {nbytes}"] = answer["copy"]
            measured[f"read  {nbytes}"] = answer["copy"] + answer["read"]
        return measured

    def close(self) -> None:
        """End the process."""
        self._process.close()


def rows_of(size: str) -> list[str]:
    """The rows that are measured at a size."""
    return [
        row
        for row, (runner, kind) in ROWS.items()
        if (runner, size) not in TOO_SLOW and (size != "1 GB" or kind in KINDS_OF_1_GB)
    ]


def marks(size: str, peer: str) -> list[pytest.MarkDecorator]:
    """A smoke run leaves out what would run the same code once more."""
    covered = size == "1 MB" and peer != NOT_IN_SMOKE
    return [] if covered else [pytest.mark.same_code]


CASES = [
    pytest.param(size, what, peer, id=f"{size}-{what}-{peer}", marks=marks(size, peer))
    for size in SIZES
    for what in ["start", "read"]
    for peer in rows_of(size)
    if (size, what) != ("1 MB", "read")
]


@pytest.mark.parametrize(("size", "what", "peer"), CASES)
def test_handover(
    size: str,
    what: str,
    peer: str,
    smoke: bool,
    prefect_server: PrefectServer,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    key, rounds = TOGETHER[size]
    sizes = {
        name: (nbytes, 1 if smoke else count)
        for name, (nbytes, count) in SIZES.items()
        if TOGETHER[name][0] == key and (not smoke or name == "1 MB")
    }

    def open_peer(runner: str) -> Peer:
        if runner == "memcpy":
            return MemcpyPeer([nbytes for nbytes, _ in sizes.values()])
        more = 1 if smoke else MORE_CHAINS.get(runner, 1)
        plan: dict[str, list[Any]] = {"numpy": [(BASE_NBYTES, 2 if smoke else BASE_CHAINS * more)]}
        for name, (nbytes, count) in sizes.items():
            for of_row in rows_of(name):
                of_runner, kind = ROWS[of_row]
                if of_runner == runner:
                    plan.setdefault(kind, []).append((nbytes, count * more))
        few = {"trials": 1, "unseen": 0} if smoke else {"trials": 2, "unseen": 3}
        return FlowPeer(runner, prefect_server, "handover.handover", plan=plan, **few)

    runners = dict.fromkeys(ROWS[name][0] for name in rows_of(size))
    if smoke:
        runners.pop(NOT_IN_SMOKE)
    measurements = measured(
        ("handover", key),
        {runner: partial(open_peer, runner) for runner in runners},
        rounds=rounds,
        warmup_rounds=0,
    )
    runner, kind = ROWS[peer]
    nbytes = sizes[size][0]
    measurement = measurements[runner]
    name = f"{what} {kind} {nbytes}"
    base = measurement.values(f"{what} numpy {BASE_NBYTES}")
    done = "has read all" if what == "read" else "starts"
    row(
        measurement,
        group=f"hand-over, {size}, consumer {done}",
        peer=peer,
        reference="ThreadPool",
        work=nbytes,
        unit="bytes",
        duration=name,
        base=base or None,
        limit=runner == "memcpy",
        peak_memory_ratio=(
            measurement.ratio("driver_peak_nbytes", nbytes)
            if what == "start" and nbytes >= MEMORY_MIN_NBYTES
            else None
        ),
        elsewhere=measurement.median(f"elsewhere {kind} {nbytes}"),
        chart="hand-over",
        payload_nbytes=nbytes,
    )
