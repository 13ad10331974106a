"""One side of a ping-pong: a lone message there and back, again and again.

Run: ``round_trip ROLE PEER COUNT ENDPOINT ACK_ENDPOINT``. The receiver answers each message with
the same one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench.peers.control import serve
from bench.peers.small_messages import TIMEOUT_S, open_channel, pyzmq_sockets, timed

VALUES: dict[str, Any] = {
    "bytes": b"x" * 64,
    "dict": {"id": 7, "name": "task run", "state": "RUNNING", "progress": 0.5},
}


def ping(send: Callable[[Any], object], recv: Callable[[], Any], value: Any, count: int) -> int:
    """Send and await the answer; how many answers were right."""
    right = 0
    for _ in range(count):
        send(value)
        right += recv() == value
    return right


def pong(send: Callable[[Any], object], recv: Callable[[], Any], value: Any, count: int) -> int:
    """Answer each message with itself; how many were right."""
    right = 0
    for _ in range(count):
        message = recv()
        send(message)
        right += message == value
    return right


def play(
    receiver: bool,
    send: Callable[[Any], object],
    recv: Callable[[], Any],
    value: Any,
    count: int,
    endpoints: list[str],
) -> None:
    if receiver:
        serve(
            lambda _: {"checksum": pong(send, recv, value, count)},
            endpoints=endpoints,
        )
    else:
        serve(lambda _: timed(lambda: ping(send, recv, value, count), count))


def main() -> None:
    role, peer, count, *endpoints = sys.argv[1:]
    receiver = role == "receiver"
    library, what = peer.split("-")
    value = VALUES[what]
    if library == "zfast":
        with open_channel(receiver, endpoints[0]) as channel:
            bound = [channel.endpoint] * 2
            recv = lambda: channel.recv(timeout=TIMEOUT_S)  # noqa: E731
            send = lambda v: channel.send(v, timeout=TIMEOUT_S)  # noqa: E731
            play(receiver, send, recv, value, int(count), bound)
        return
    with pyzmq_sockets(receiver, endpoints) as (first, second):
        bound = [s.last_endpoint.rstrip(b"\0").decode() for s in (first, second)]
        out, back = (second, first) if receiver else (first, second)
        if what == "dict":
            play(receiver, out.send_pyobj, back.recv_pyobj, value, int(count), bound)
        else:
            play(receiver, out.send, back.recv, value, int(count), bound)


if __name__ == "__main__":
    main()
