"""The other process of a row: receives what it is sent, reads it, acknowledges each round.

Run: ``python -m zfast.benchmark.partner PEER KIND ENDPOINT ACK_ENDPOINT``. It connects, and ends
when it is told to or its parent has gone.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from zfast.addresses import InsecureEndpointWarning
from zfast.channel import Channel

TIMEOUT_S = 60.0
#: float64 values in a page of 4 KiB.
PAGE_VALUES = 512


def open_end(endpoint: str, *, bound: bool) -> Channel:
    """A channel's end; tcp without keys needs a word, and warns all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureEndpointWarning)
        opener = Channel.bind if bound else Channel.connect
        return opener(endpoint, insecure=endpoint.startswith("tcp:"))


def touch(arrays: dict[str, Any]) -> float:
    """Read a value of every page of every array."""
    return float(sum(array[::PAGE_VALUES].sum() for array in arrays.values()))


def channel_rounds(kind: str, channel: Channel) -> Callable[[int], None]:
    """What the channel's receiver does in one round of so many messages."""

    def small(count: int) -> None:
        total = 0
        while count:
            batch = channel.recv_many(timeout=TIMEOUT_S)
            total += int(np.asarray(batch.data)[np.asarray(batch.offsets)[:-1]].sum())
            count -= len(batch)
        channel.send(total, timeout=TIMEOUT_S)

    def ping(count: int) -> None:
        for _ in range(count):
            channel.send(channel.recv(timeout=TIMEOUT_S), timeout=TIMEOUT_S)

    def arrays(count: int) -> None:
        total = 0.0
        for _ in range(count):
            total += touch(channel.recv(timeout=TIMEOUT_S))
        channel.send(total, timeout=TIMEOUT_S)

    return {"small": small, "ping": ping, "arrays": arrays}[kind]


def pyzmq_rounds(
    kind: str, data: zmq.Socket[bytes], ack: zmq.Socket[bytes]
) -> Callable[[int], None]:
    """The same with pyzmq's sockets as its documentation has them."""

    def small(count: int) -> None:
        ack.send_pyobj(sum(data.recv()[0] for _ in range(count)))

    def ping(count: int) -> None:
        for _ in range(count):
            ack.send_pyobj(data.recv_pyobj())

    def arrays(count: int) -> None:
        total = 0.0
        for _ in range(count):
            header, *buffers = data.recv_multipart(copy=False)
            total += touch(pickle.loads(header.buffer, buffers=[b.buffer for b in buffers]))
        ack.send_pyobj(total)

    return {"small": small, "ping": ping, "arrays": arrays}[kind]


def main() -> None:
    """Serve rounds: a line with a count on standard input is one."""
    peer, kind, *endpoints = sys.argv[1:]
    if peer == "zfast":
        with open_end(endpoints[0], bound=False) as channel:
            _serve(channel_rounds(kind, channel))
        return
    with zmq.Context() as context:
        data, ack = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        for socket, endpoint in zip((data, ack), endpoints, strict=True):
            socket.linger = 0
            socket.rcvtimeo = socket.sndtimeo = int(TIMEOUT_S * 1000)
            socket.connect(endpoint)
        _serve(pyzmq_rounds(kind, data, ack))
        data.close()
        ack.close()


def _serve(one_round: Callable[[int], None]) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        one_round(int(line))


if __name__ == "__main__":
    main()
