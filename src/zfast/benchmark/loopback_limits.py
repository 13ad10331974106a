"""Rounds that measure what the kernel moves between two ends on one machine, and how soon."""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import zmq

from zfast.benchmark.memory_limits import Bytes, Round

WRITE_NBYTES = 2**20


def _loopback(family: int) -> Callable[[Bytes], Any]:
    @contextmanager
    def make(source: Bytes) -> Iterator[Round]:
        data = source.data
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
        connection.send(pair.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
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


LOOPBACKS: dict[str, Callable[[Bytes], Any]] = {
    "Unix socket, 1 MiB writes": _loopback(socket.AF_UNIX),
    "tcp loopback, 1 MiB writes": _loopback(socket.AF_INET),
}
PINGS: dict[str, Callable[[int], Any]] = {
    "ping, socket pair of two processes": _socket_ping,
    "ping, pyzmq ipc": _zmq_ping("ipc"),
    "ping, pyzmq tcp": _zmq_ping("tcp"),
}
