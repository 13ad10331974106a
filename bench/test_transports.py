"""A DataFrame to another process of this host by every way there is, from 1 KB to 1 GB or 4 GB."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.conftest import Measure
from bench.measure import Peer, UnavailablePeerError, replay_clock
from bench.processes import Pair, PeerProcess, python_command

PAIRS = [
    "pyzmq multipart",
    "zfast channel",
    "Pipe",
    "shared_memory, new",
    "shared_memory, reused",
    "Arrow Flight",
    "ProxyStore, file",
]
PEERS = [*PAIRS, "Dask", "Ray"]
PACKAGES = {
    "Arrow Flight": "pyarrow",
    "ProxyStore, file": "proxystore",
    "Dask": "distributed",
    "Ray": "ray",
}
KB, MB, GB = 1_000, 1_000_000, 1_000_000_000
#: By size: bytes, transfers a round, passes. Fewer where a transfer takes seconds.
SIZES = {
    "1 KB": (KB, 100, 5),
    "10 KB": (10 * KB, 100, 5),
    "100 KB": (100 * KB, 100, 5),
    "1 MB": (MB, 20, 5),
    "10 MB": (10 * MB, 5, 5),
    "100 MB": (100 * MB, 2, 5),
    "1 GB": (GB, 1, 3),
    "4 GB": (4 * GB, 1, 2),
}
#: Where a transfer takes milliseconds whatever its size, fewer do.
SLOWNESS = 10
SMOKE_SIZES = ["10 KB", "1 MB"]
#: Below this, what the allocator already holds hides the peak.
MEMORY_MIN_NBYTES = 10 * MB
#: Seconds for one round of the largest.
TIMEOUT_S = 180.0

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(1500)]


class Cluster:
    """Ray or Dask: one process that commands both ends."""

    def __init__(self, name: str) -> None:
        """Start it."""
        self._process = PeerProcess(python_command("clusters", name))

    def round(self, **command: int) -> dict[str, float]:
        """Run one round; the process checks its results."""
        return self._process.ask(TIMEOUT_S, **command)

    def close(self) -> None:
        """End it."""
        self._process.close()


class Transports:
    """Peers that are started once, for all sizes."""

    def __init__(self, folder: Path) -> None:
        """Nothing is started yet."""
        self._folder = folder
        self._running: dict[str, Pair | Cluster] = {}
        self._numbers = itertools.count()

    def start(self, name: str) -> None:
        """Start a peer, unless it runs."""
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise UnavailablePeerError(f"{package} is not installed")
        if name in self._running:
            return
        if name not in PAIRS:
            self._running[name] = Cluster(name)
            return
        receiver, sender = (
            python_command("transports", role, name) for role in ("receiver", "sender")
        )
        endpoint = f"ipc://{self._folder}/transport{next(self._numbers)}"
        self._running[name] = Pair(receiver, sender, [endpoint])

    def round(self, name: str, nbytes: int, count: int) -> dict[str, float]:
        """Run one round; a peer that fails is started anew for the next size."""
        try:
            return self._running[name].round(nbytes=nbytes, count=count)
        except Exception:
            self._running.pop(name).close()
            raise

    def close(self) -> None:
        """End them all."""
        for peer in self._running.values():
            peer.close()


class OneSize:
    """A peer's rounds of one size."""

    def __init__(self, transports: Transports, name: str, nbytes: int, count: int) -> None:
        """Start the peer, unless it runs."""
        transports.start(name)
        self._transports, self._name = transports, name
        self._nbytes, self._count = nbytes, count

    def round(self) -> dict[str, float]:
        """Run `count` transfers; seconds and page faults of one."""
        measured = self._transports.round(self._name, self._nbytes, self._count)
        for name in measured.keys() & {"seconds", "minor_faults"}:
            measured[name] /= self._count
        return measured

    def close(self) -> None:
        """Leave it running for the next size."""


@pytest.fixture(scope="module")
def transports(work_folder: Path) -> Iterator[Transports]:
    peers = Transports(work_folder)
    try:
        yield peers
    finally:
        peers.close()


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=[] if size in SMOKE_SIZES else pytest.mark.same_code)
        for size in SIZES
    ],
)
def test_transports(
    peer: str,
    size: str,
    transports: Transports,
    request: pytest.FixtureRequest,
    smoke: bool,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    nbytes, count, rounds = SIZES[size]
    if nbytes > GB and not request.config.getoption("--huge"):
        pytest.skip("only with --huge")

    def open_peer(name: str) -> Peer:
        transfers = 2 if smoke else count if name in PAIRS else -(-count // SLOWNESS)
        return OneSize(transports, name, nbytes, transfers)

    measurements = measured(
        ("transports", size),
        {name: partial(open_peer, name) for name in PEERS},
        rounds=rounds,
        warmup_rounds=1,
    )
    measurement = measurements[peer]
    row(
        measurement,
        group=f"transports, {size}",
        peer=peer,
        reference="pyzmq multipart",
        work=nbytes,
        unit="bytes",
        peak_memory_ratio=(
            measurement.ratio("peak_nbytes", nbytes) if nbytes >= MEMORY_MIN_NBYTES else None
        ),
        minor_faults=measurement.median("minor_faults"),
        limit=peer == "shared_memory, reused",
        chart="transports",
        payload_nbytes=nbytes,
    )
