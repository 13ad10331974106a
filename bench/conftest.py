"""Fixtures of the benchmarks: groups measured once, rows handed to pytest-benchmark."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.measure import Measurement, Peer, measure_in_turns, replay_clock
from bench.rows import installed_versions
from bench.server import PrefectServer

LOST = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--smoke", action="store_true", help="run each benchmark once and small: no timings count"
    )
    parser.addoption("--passes", type=int, default=100, help="no group takes more than so many")
    parser.addoption("--huge", action="store_true", help="transports up to 4 GB: wants 20 GB free")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LOST] = []
    # As an error, this would keep an interrupted run from ending its servers.
    warnings.filterwarnings("ignore", "Not saving anything")
    config.addinivalue_line(
        "markers", "same_code: the same code as another case, so a smoke run leaves it out"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--smoke"):
        left_out = [item for item in items if item.get_closest_marker("same_code")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Say what the numbers depend on, and not whose machine it is."""
    machine_info.pop("node", None)
    machine_info["cores"] = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count())
    )
    machine_info["memory_gib"] = round(psutil.virtual_memory().total / 2**30, 1)
    machine_info["versions"] = installed_versions()


def pytest_benchmark_update_json(config: pytest.Config, output_json: Any) -> None:
    """Rows that should be there and are not belong to the result."""
    output_json["lost"] = config.stash[LOST]
    output_json["smoke"] = config.getoption("--smoke")


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--smoke"))


@pytest.fixture(scope="session")
def work_folder() -> Iterator[Path]:
    """A folder for sockets and files. Short: the path of a Unix socket has about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="zfast-bench-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def prefect_server(work_folder: Path) -> Iterator[PrefectServer]:
    with PrefectServer(work_folder / "prefect-server") as server:
        yield server


Measure = Callable[..., dict[str, Measurement]]


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest, smoke: bool) -> Measure:
    """Measure a set of peers in turns, when its first row is asked for."""
    done: dict[object, dict[str, Measurement]] = {}

    def measure(
        key: object, openers: Mapping[str, Callable[[], Peer]], *, rounds: int, warmup_rounds: int
    ) -> dict[str, Measurement]:
        if key not in done:
            rounds = min(rounds, request.config.getoption("--passes"))
            if smoke:
                rounds, warmup_rounds = 1, 0
            done[key] = measure_in_turns(openers, rounds=rounds, warmup_rounds=warmup_rounds)
        return done[key]

    return measure


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Hand one peer's durations to pytest-benchmark, or say that they are lost."""

    def hand_over(
        measurement: Measurement,
        *,
        group: str,
        peer: str,
        reference: str,
        work: float,
        unit: str,
        duration: str = "seconds",
        **extra: object,
    ) -> None:
        """Report a row.

        Args:
            measurement: What came of the peer.
            group: The group of rows that it is compared in.
            peer: The row's name.
            reference: The peer that ratios of this group refer to.
            work: How much a round does, in `unit`.
            unit: "messages", "bytes", "tasks" or "flows".
            duration: Which of a round's durations.
            extra: What else to say of the row: the fields of `bench.rows.Row`.
        """
        reason = measurement.unavailable or measurement.lost
        if reason:
            request.config.stash[LOST].append({"group": group, "peer": peer, "reason": reason})
            if measurement.unavailable:
                pytest.skip(reason)
            pytest.fail(reason, pytrace=False)
        durations = measurement.values(duration)
        assert len(durations) == len(measurement.rounds) > 0
        assert min(durations) > 0
        # Only now: pytest-benchmark complains of a fixture that is not used.
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group = group
        benchmark.name = peer
        benchmark.extra_info.update(peer=peer, reference=reference, work=work, unit=unit, **extra)
        benchmark.pedantic(replay_clock.replay(durations), rounds=len(durations))

    return hand_over
