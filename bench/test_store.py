"""Prefect's result store: stock, and with zfast's serializers and storage, on the same disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.conftest import Measure
from bench.measure import Peer, replay_clock
from bench.processes import PeerProcess, python_command

PEERS = ["stock", "zfast/inline", "zfast"]
SIZES = {"1 KB": 1_000, "1 MB": 1_000_000, "100 MB": 100_000_000}
#: Results a round, so that a round is long enough to be timed.
COUNTS = {"1 KB": 50, "1 MB": 10, "100 MB": 1}
#: Below this, what the allocator already holds hides the peak.
MEMORY_MIN_NBYTES = 50_000_000

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(600)]


class StorePeer:
    """A process with a result store of its own, in a folder of its own."""

    def __init__(self, name: str, nbytes: int, count: int, folder: Path) -> None:
        """Start the process."""
        results, home = folder / "results", folder / "home"
        results.mkdir(parents=True)
        self._process = PeerProcess(
            python_command("store", name, nbytes, count, results), {"PREFECT_HOME": str(home)}
        )
        self._nbytes = nbytes * count
        #: Peak extra memory of each half, in sizes of the payload.
        self.extra: dict[str, float] = {}

    def round(self) -> dict[str, float]:
        """Write, read, check and delete."""
        if self._nbytes >= MEMORY_MIN_NBYTES and not self.extra:
            # Once, in a round whose time does not count.
            answer = self._process.ask(memory=True)
            for half in ("write", "read"):
                if answer[f"{half}_peak"] is not None:
                    self.extra[half] = answer[f"{half}_peak"] / self._nbytes
        answer = self._process.ask()
        return {"write": answer["write"], "read": answer["read"]}

    def close(self) -> None:
        """End the process."""
        self._process.close()


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("half", ["write", "read"])
@pytest.mark.parametrize(
    "size", ["1 KB", "1 MB", pytest.param("100 MB", marks=pytest.mark.same_code)]
)
def test_store(
    peer: str,
    half: str,
    size: str,
    smoke: bool,
    work_folder: Path,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    nbytes = min(SIZES[size], 1_000_000) if smoke else SIZES[size]
    count = 1 if smoke else COUNTS[size]

    def open_peer(name: str) -> Peer:
        folder = work_folder / "store" / f"{size}-{name}".replace("/", "-").replace(" ", "-")
        return StorePeer(name, nbytes, count, folder)

    measurements = measured(
        ("store", size),
        {name: partial(open_peer, name) for name in PEERS},
        rounds=9,
        warmup_rounds=1,
    )
    row(
        measurements[peer],
        group=f"result store, {half} {size}",
        peer=peer,
        reference="stock",
        work=nbytes * count,
        unit="bytes",
        duration=half,
        peak_memory_ratio=measurements[peer].extra.get(half),
    )
