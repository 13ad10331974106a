"""Many small payloads: libzmq in C, pyzmq, and a zfast channel's batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.c_program import build_stream, find_libzmq
from bench.conftest import Measure
from bench.measure import Peer, replay_clock
from bench.processes import Pair, python_command

C_MODES = {"libzmq-c": "single", "libzmq-c-batched": "batched"}
PYTHON_PEERS = ["pyzmq", "pyzmq-send_pyobj", "zfast-batch", "zfast-iter"]
PEERS = [*C_MODES, *PYTHON_PEERS]
COUNTS = {64: 400_000, 1024: 100_000}

pytestmark = [pytest.mark.benchmark(timer=replay_clock.now), pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def c_stream(work_folder: Path) -> Callable[[], list[str]]:
    """The command of the C program, built when first asked for."""
    built: list[str] = []

    def command() -> list[str]:
        if not built:
            built.extend([build_stream(work_folder), find_libzmq()])
        return built

    return command


def endpoints(transport: str, folder: Path, name: str) -> list[str]:
    """Where the receiver binds, for payloads and for acknowledgements."""
    if transport == "tcp":
        return ["tcp://127.0.0.1:*"] * 2
    return [f"ipc://{folder}/{name}", f"ipc://{folder}/{name}-ack"]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("nbytes", [64, pytest.param(1024, marks=pytest.mark.same_code)])
def test_small_messages(
    peer: str,
    transport: str,
    nbytes: int,
    smoke: bool,
    work_folder: Path,
    c_stream: Callable[[], list[str]],
    measured: Measure,
    row: Callable[..., None],
) -> None:
    count = COUNTS[nbytes] // (100 if smoke else 1)

    def open_pair(name: str) -> Peer:
        if name in C_MODES:
            program, libzmq = c_stream()
            commands = [
                [program, libzmq, role, C_MODES[name], str(nbytes), str(count)]
                for role in ("receiver", "sender")
            ]
        else:
            commands = [
                python_command("small_messages", role, name, nbytes, count)
                for role in ("receiver", "sender")
            ]
        return Pair(*commands, endpoints(transport, work_folder, f"{name}-{nbytes}"))

    measurements = measured(
        ("small messages", nbytes, transport),
        {name: partial(open_pair, name) for name in PEERS},
        rounds=11,
        warmup_rounds=2,
    )
    row(
        measurements[peer],
        group=f"small messages, {nbytes} B, {transport}",
        peer=peer,
        reference="libzmq-c",
        work=count,
        unit="messages",
    )


ROUND_TRIPS = 2000


@pytest.mark.parametrize("what", ["bytes", pytest.param("dict", marks=pytest.mark.same_code)])
@pytest.mark.parametrize("library", ["pyzmq", "zfast"])
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_round_trip(
    library: str,
    what: str,
    transport: str,
    smoke: bool,
    work_folder: Path,
    measured: Measure,
    row: Callable[..., None],
) -> None:
    """A lone message there and back: nothing to batch it with."""
    count = ROUND_TRIPS // (100 if smoke else 1)

    def open_pair(name: str) -> Peer:
        commands = [
            python_command("round_trip", role, f"{name}-{what}", count)
            for role in ("receiver", "sender")
        ]
        return Pair(*commands, endpoints(transport, work_folder, f"{name}-{what}"))

    measurements = measured(
        ("round trip", what, transport),
        {name: partial(open_pair, name) for name in ("pyzmq", "zfast")},
        rounds=11,
        warmup_rounds=2,
    )
    row(
        measurements[library],
        group=f"round trip, {'64 B' if what == 'bytes' else 'small dict'}, {transport}",
        peer=library,
        reference="pyzmq",
        work=count,
        unit="messages",
    )
