"""What the machine itself can do: copies, page faults, the kernel's loopback, a ping."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

SIZE_NBYTES = 256 * 2**20
SMOKE_NBYTES = 2**20
ROUNDS = 7
WRITE_NBYTES = 2**20
PING_COUNT, SMOKE_PINGS = 2000, 20

Bytes = npt.NDArray[np.uint8]
#: A round's seconds; what it prepares and cleans up is not in them.
Round = Callable[[], float]


@dataclass
class Limit:
    """One measured limit. `values` are in `unit`, one a round."""

    name: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)


def measure_limits(smoke: bool = False) -> list[Limit]:
    """Measure everything, rounds taken in turns; about ten seconds."""
    nbytes = SMOKE_NBYTES if smoke else SIZE_NBYTES
    pages = nbytes / mmap.PAGESIZE
    # One source for all: the machine may be small.
    source = np.random.default_rng(7).integers(0, 255, nbytes, np.uint8, endpoint=True)
    kinds: list[tuple[dict[str, Callable[[Any], Any]], Any, Callable[[float], float], str]] = [
        (COPIES, source, lambda seconds: nbytes / seconds / 1e9, "GB/s"),
        (FAULTS, nbytes, lambda seconds: seconds / pages * 1e9, "ns/page"),
        (PINGS, SMOKE_PINGS if smoke else PING_COUNT, lambda seconds: seconds * 1e6, "µs"),
    ]
    with ExitStack() as stack:
        limits: list[Limit] = []
        rounds: list[Callable[[], float]] = []
        for makers, argument, convert, unit in kinds:
            for name, make in makers.items():
                one_round: Round = stack.enter_context(make(argument))
                limits.append(Limit(name, unit, []))
                rounds.append(lambda run=one_round, convert=convert: convert(run()))
        for i in range(-1, 1 if smoke else ROUNDS):
            for limit, measure in zip(limits, rounds, strict=True):
                value = measure()
                if i >= 0:
                    limit.values.append(value)
    return limits


def _view(memory: Any) -> Bytes:
    return np.frombuffer(memory, np.uint8)


def _timed_copy(target: Bytes, source: Bytes) -> float:
    start = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - start


@contextmanager
def _warm_copy(source: Bytes) -> Iterator[Round]:
    target = np.ones_like(source)
    yield lambda: _timed_copy(target, source)


@contextmanager
def _warm_read(source: Bytes) -> Iterator[Round]:
    values = source.view(np.uint64)

    def one_round() -> float:
        start = time.perf_counter()
        values.sum()
        return time.perf_counter() - start

    yield one_round


def _fresh_copy(advice: str) -> Callable[[Bytes], Any]:
    @contextmanager
    def make(source: Bytes) -> Iterator[Round]:
        def one_round() -> float:
            memory = mmap.mmap(-1, source.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, advice):
                memory.madvise(getattr(mmap, advice))
            return _timed_copy(_view(memory), source)

        yield one_round

    return make


@contextmanager
def _shared_file() -> Iterator[int]:
    """A file in memory, by its descriptor."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("zfast-bench-limits")
    else:
        fd, path = tempfile.mkstemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        os.unlink(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _fresh_shared_copy(source: Bytes) -> Iterator[Round]:
    def one_round() -> float:
        with _shared_file() as fd:
            os.ftruncate(fd, source.nbytes)
            return _timed_copy(_view(mmap.mmap(fd, source.nbytes)), source)

    yield one_round


@contextmanager
def _fresh_shared_write(source: Bytes) -> Iterator[Round]:
    data = memoryview(source)

    def one_round() -> float:
        with _shared_file() as fd:
            start, done = time.perf_counter(), 0
            while done < source.nbytes:
                done += os.write(fd, data[done:])
            return time.perf_counter() - start

    yield one_round


def _reused_shared_copy(new_mapping: bool) -> Callable[[Bytes], Any]:
    @contextmanager
    def make(source: Bytes) -> Iterator[Round]:
        with _shared_file() as fd:
            os.ftruncate(fd, source.nbytes)
            kept = _view(mmap.mmap(fd, source.nbytes))
            kept[:] = 1

            def one_round() -> float:
                start = time.perf_counter()
                target = _view(mmap.mmap(fd, source.nbytes)) if new_mapping else kept
                np.copyto(target, source)
                return time.perf_counter() - start

            yield one_round

    return make


@contextmanager
def _anonymous_faults(nbytes: int) -> Iterator[Round]:
    def one_round() -> float:
        memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        pages = _view(memory)[:: mmap.PAGESIZE]
        start = time.perf_counter()
        pages[:] = 1
        return time.perf_counter() - start

    yield one_round


@contextmanager
def _shared_faults(nbytes: int) -> Iterator[Round]:
    with _shared_file() as fd:
        os.ftruncate(fd, nbytes)
        _view(mmap.mmap(fd, nbytes))[:] = 1

        def one_round() -> float:
            start = time.perf_counter()
            _view(mmap.mmap(fd, nbytes))[:: mmap.PAGESIZE].max()
            return time.perf_counter() - start

        yield one_round


def _loopback(family: int) -> Callable[[Bytes], Any]:
    @contextmanager
    def make(source: Bytes) -> Iterator[Round]:
        data = memoryview(source)
        target = memoryview(bytearray(WRITE_NBYTES))
        sender, receiver = _socket_pair(family)

        def send() -> None:
            for start in range(0, source.nbytes, WRITE_NBYTES):
                sender.sendall(data[start : start + WRITE_NBYTES])

        def one_round() -> float:
            thread = threading.Thread(target=send)
            start, done = time.perf_counter(), 0
            thread.start()
            while done < source.nbytes:
                done += receiver.recv_into(target)
            seconds = time.perf_counter() - start
            thread.join()
            return seconds

        with sender, receiver:
            yield one_round

    return make


def _socket_pair(family: int) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        return sender, server.accept()[0]


def _echo_bytes(connection: Connection) -> None:
    with connection, suppress(EOFError):  # until the other end is closed
        while message := connection.recv_bytes():
            connection.send_bytes(message)


def _echo_zmq(endpoint: str, connection: Connection) -> None:
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair, connection:
        pair.linger = 0
        pair.bind(endpoint)
        connection.send(pair.last_endpoint.rstrip(b"\0").decode())
        while message := pair.recv():
            pair.send(message)


@contextmanager
def _echo_process(echo: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=echo, args=(*arguments, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        with ours:
            yield ours
    finally:
        process.terminate()
        process.join()


@contextmanager
def _socket_ping(count: int) -> Iterator[Round]:
    with _echo_process(_echo_bytes) as connection:

        def ping() -> None:
            connection.send_bytes(b"\1")
            connection.recv_bytes()

        ping()
        yield lambda: _timed_pings(ping, count)


def _zmq_ping(transport: str) -> Callable[[int], Any]:
    @contextmanager
    def make(count: int) -> Iterator[Round]:
        with tempfile.TemporaryDirectory(prefix="zfast-bench-") as folder, ExitStack() as stack:
            endpoint = f"ipc://{folder}/ping" if transport == "ipc" else "tcp://127.0.0.1:*"
            connection = stack.enter_context(_echo_process(_echo_zmq, endpoint))
            context = stack.enter_context(zmq.Context())
            pair = stack.enter_context(context.socket(zmq.PAIR))
            pair.linger = 0
            pair.connect(connection.recv())

            def ping() -> None:
                pair.send(b"\1")
                pair.recv()

            ping()
            yield lambda: _timed_pings(ping, count)

    return make


def _timed_pings(ping: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        ping()
    return (time.perf_counter() - start) / count


COPIES: dict[str, Callable[[Bytes], Any]] = {
    "copy, warm memory": _warm_copy,
    "copy, fresh memory, 4 KiB pages": _fresh_copy("MADV_NOHUGEPAGE"),
    "copy, fresh memory, huge pages": _fresh_copy("MADV_HUGEPAGE"),
    "copy, fresh shared memory, mapped": _fresh_shared_copy,
    "write(), fresh shared memory": _fresh_shared_write,
    "copy, reused shared memory, kept mapping": _reused_shared_copy(False),
    "copy, reused shared memory, new mapping": _reused_shared_copy(True),
    "read (sum), warm memory": _warm_read,
    "Unix socket, 1 MiB writes": _loopback(socket.AF_UNIX),
    "tcp loopback, 1 MiB writes": _loopback(socket.AF_INET),
}
FAULTS: dict[str, Callable[[int], Any]] = {
    "page fault, fresh memory": _anonymous_faults,
    "page fault, shared memory that is there": _shared_faults,
}
PINGS: dict[str, Callable[[int], Any]] = {
    "ping, socket pair of two processes": _socket_ping,
    "ping, pyzmq ipc": _zmq_ping("ipc"),
    "ping, pyzmq tcp": _zmq_ping("tcp"),
}
