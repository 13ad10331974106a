"""What runs rounds: a sender here and a partner in another process, or work on arrays here."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import zmq

from zfast.arena import share_memory
from zfast.benchmark.partner import TIMEOUT_S, open_end, touch
from zfast.errors import ZfastError

COLUMNS = 10


class PeerError(ZfastError):
    """A partner failed, or did not receive what was sent."""


class Peer(Protocol):
    """Runs rounds, and checks what came of each."""

    def round(self) -> float:
        """Run one; its seconds."""

    def close(self) -> None:
        """Leave nothing behind."""


def make_arrays(nbytes: int) -> dict[str, Any]:
    """Columns of random numbers, ``nbytes`` together."""
    random = np.random.default_rng(7)
    return {f"column{i}": random.random(max(1, nbytes // 8 // COLUMNS)) for i in range(COLUMNS)}


class Sender:
    """Sends to a partner process over ``transport`` with ``peer``: ``"zfast"`` or ``"pyzmq"``.

    Args:
        kind: ``"small"``: payloads of 64 B; ``"ping"``: one there and back; ``"arrays"``.
        count: Messages in a round.
        nbytes: Of one of the arrays' messages.
    """

    def __init__(self, peer: str, kind: str, transport: str, count: int, nbytes: int) -> None:
        self._count = count
        self._folder = tempfile.TemporaryDirectory(prefix="zfast-bench-")
        endpoints = [
            f"ipc://{self._folder.name}/{name}" if transport == "ipc" else "tcp://127.0.0.1:*"
            for name in ("data", "ack")
        ]
        open_side = self._open_channel if peer == "zfast" else self._open_sockets
        bound, self._send, self._receive, self._close = open_side(endpoints)
        self._payload, self._expected = self._make(kind, nbytes)
        self._run = getattr(self, f"_{kind}_{peer}")
        command = [sys.executable, "-m", "zfast.benchmark.partner", peer, kind, *bound]
        self._partner = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._partner.stdout is not None
        if self._partner.stdout.readline().strip() != "ready":
            self.close()
            raise PeerError(f"the partner of {peer} did not start")

    def _make(self, kind: str, nbytes: int) -> tuple[Any, Any]:
        if kind == "small":
            payloads = [bytes([i & 0xFF]) + bytes(63) for i in range(self._count)]
            return payloads, sum(payload[0] for payload in payloads)
        if kind == "ping":
            return {"answer": 42}, {"answer": 42}
        arrays = make_arrays(nbytes)
        total = 0.0
        for _ in range(self._count):  # as the partner adds them up, to the last bit
            total += touch(arrays)
        return arrays, total

    def _open_channel(self, endpoints: list[str]) -> tuple[list[str], Any, Any, Any]:
        channel = open_end(endpoints[0], bound=True)
        self._channel = channel
        receive = lambda: channel.recv(timeout=TIMEOUT_S)  # noqa: E731
        return [channel.endpoint] * 2, channel.send, receive, channel.abort

    def _open_sockets(self, endpoints: list[str]) -> tuple[list[str], Any, Any, Any]:
        context = zmq.Context()
        data, ack = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        for socket, endpoint in zip((data, ack), endpoints, strict=True):
            socket.linger = 0
            socket.rcvtimeo = socket.sndtimeo = int(TIMEOUT_S * 1000)
            socket.bind(endpoint)
        bound = [socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0") for socket in (data, ack)]
        self._data = data
        return bound, data.send_pyobj, ack.recv_pyobj, context.destroy

    def _small_zfast(self) -> Any:
        self._channel.send_many(self._payload, timeout=TIMEOUT_S)
        return self._receive()

    def _small_pyzmq(self) -> Any:
        for payload in self._payload:
            self._data.send(payload)
        return self._receive()

    def _ping_zfast(self) -> Any:
        for _ in range(self._count):
            self._send(self._payload)
            back = self._receive()
        return back

    _ping_pyzmq = _ping_zfast

    def _arrays_zfast(self) -> Any:
        for _ in range(self._count):
            self._channel.send(self._payload, timeout=TIMEOUT_S)
        return self._receive()

    def _arrays_pyzmq(self) -> Any:
        for _ in range(self._count):
            buffers: list[pickle.PickleBuffer] = []
            header = pickle.dumps(self._payload, protocol=5, buffer_callback=buffers.append)
            self._data.send_multipart([header, *(b.raw() for b in buffers)], copy=False)
        return self._receive()

    def round(self) -> float:
        """Send, and wait for the acknowledgement; its seconds."""
        assert self._partner.stdin is not None
        self._partner.stdin.write(f"{self._count}\n")
        self._partner.stdin.flush()
        start_s = time.perf_counter()
        received = self._run()
        seconds = time.perf_counter() - start_s
        if received != self._expected:
            raise PeerError(f"received {received!r}, expected {self._expected!r}")
        return seconds

    def close(self) -> None:
        """End the partner, and let go of the sockets."""
        if self._partner.stdin is not None:
            self._partner.stdin.close()
        try:
            self._partner.wait(10)
        except subprocess.TimeoutExpired:
            self._partner.kill()
            self._partner.wait()
        if self._partner.stdout is not None:
            self._partner.stdout.close()
        self._close()
        self._folder.cleanup()


class ArrayWork:
    """Arithmetic on new arrays: in shared memory that stays warm, or on the heap."""

    def __init__(self, shared: bool, nbytes: int) -> None:
        self._shared = shared
        self._left, self._right = (
            np.random.default_rng(seed).random(max(1, nbytes // 8)) for seed in (1, 2)
        )

    def _work(self) -> None:
        for _ in range(3):
            total = self._left + self._right
            total = np.sqrt(total * total)

    def round(self) -> float:
        """Compute; its seconds."""
        if not self._shared:
            return _timed(self._work)
        with share_memory():
            return _timed(self._work)

    def close(self) -> None:
        """Nothing is left."""


def _timed(action: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s
