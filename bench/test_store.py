"""Prefect's result store: stock, and with zfast's serializers and storage, on the same disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.conftest import Measure
from bench.measure import Peer, replay_clock
from bench.processes import PeerProcess, python_command

PEERS = ["stock", "zfast"]
SIZES = {"1 KB": 1_000, "1 MB": 1_000_000, "100 MB": 100_000_000}
#: Results a round, so that a round is long enough to be timed.
COUNTS = {"1 KB": 50, "1 MB": 10, "100 MB": 1}
PARTS = ["write", "exists", "read"]
#: On a block that is not zfast's. Each with `key_storage` is one more pair.
OTHER_PEERS = ["stock", "zfast/inline", "stock, key_storage", "zfast/inline, key_storage"]
#: Below this, what the allocator already holds hides the peak.
MEMORY_MIN_NBYTES = 50_000_000

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(600)]


class StorePeer:
    """A process with a result store of its own, in a folder of its own."""

    def __init__(
        self, name: str, block: str, data: str, nbytes: int, count: int, folder: Path
    ) -> None:
        """Start the process."""
        results, home = folder / "results", folder / "home"
        results.mkdir(parents=True)
        self._process = PeerProcess(
            python_command("store", name, block, data, nbytes, count, results),
            {"PREFECT_HOME": str(home)},
        )
        self._nbytes = nbytes * count
        #: Peak extra memory of each part, in sizes of the payload.
        self.extra: dict[str, float] = {}

    def round(self) -> dict[str, float]:
        """Write, look, read, check and delete."""
        if self._nbytes >= MEMORY_MIN_NBYTES and not self.extra:
            # Once, in a round whose time does not count.
            answer = self._process.ask(memory=True)
            for part in PARTS:
                if answer.get(f"{part}_peak") is not None:
                    self.extra[part] = answer[f"{part}_peak"] / self._nbytes
        answer = self._process.ask()
        return {part: answer[part] for part in PARTS}

    def close(self) -> None:
        """End the process."""
        self._process.close()


@pytest.fixture
def store_row(
    smoke: bool, work_folder: Path, measured: Measure, row: Callable[..., None]
) -> Callable[..., None]:
    """Measure the peers of a group, if that is not done yet, and report one row of it."""

    def report(
        peers: list[str], peer: str, part: str, size: str, *, group: str, block: str, data: str
    ) -> None:
        nbytes = min(SIZES[size], 1_000_000) if smoke else SIZES[size]
        count = 1 if smoke else COUNTS[size]
        key = ("store", size, block, data, *peers)
        # Names of peers have characters that a path should not have.
        folder = work_folder / "store" / f"{block}-{data}-{nbytes}-{len(peers)}"

        def open_peer(name: str) -> Peer:
            own = folder / str(peers.index(name))
            return StorePeer(name, block, data, nbytes, count, own)

        measurements = measured(
            key,
            {name: partial(open_peer, name) for name in peers},
            rounds=9,
            warmup_rounds=1,
        )
        row(
            measurements[peer],
            group=group,
            peer=peer,
            reference="stock",
            work=count if part == "exists" else nbytes * count,
            unit="calls" if part == "exists" else "bytes",
            duration=part,
            peak_memory_ratio=measurements[peer].extra.get(part),
        )

    return report


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "size",
    [
        pytest.param("1 KB", marks=pytest.mark.same_code),
        "1 MB",
        pytest.param("100 MB", marks=pytest.mark.same_code),
    ],
)
def test_store(peer: str, part: str, size: str, store_row: Callable[..., None]) -> None:
    group = f"result store, {part} {size}"
    store_row(PEERS, peer, part, size, group=group, block="folder", data="noise")


@pytest.mark.parametrize("peer", OTHER_PEERS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("block", "data"),
    [
        ("folder", "noise"),
        pytest.param("remote", "noise", marks=pytest.mark.same_code),
        pytest.param("folder", "prices", marks=pytest.mark.same_code),
    ],
)
def test_other_block(
    peer: str, part: str, block: str, data: str, store_row: Callable[..., None]
) -> None:
    what = block if data == "noise" else f"{block}, {data}"
    group = f"result store, other block ({what}), {part} 100 MB"
    store_row(OTHER_PEERS, peer, part, "100 MB", group=group, block=block, data=data)
