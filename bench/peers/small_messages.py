"""A Python sender or receiver of many small payloads.

Run: ``small_messages ROLE PEER NBYTES COUNT ENDPOINT ACK_ENDPOINT``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq

from bench.peers.control import serve
from zfast.addresses import InsecureEndpointWarning
from zfast.channel import Channel

TIMEOUT_S = 60.0


def make_payloads(nbytes: int, count: int) -> list[bytes]:
    """Distinct objects, as a program that has something to say would send."""
    rest = bytes([1]) * (nbytes - 1)
    return [bytes([i & 0xFF]) + rest for i in range(count)]


@contextmanager
def pyzmq_sockets(receiver: bool, endpoints: list[str]) -> Iterator[list[zmq.Socket[bytes]]]:
    """A PULL and a PUSH socket for the receiver, the other way round for the sender."""
    with zmq.Context() as context:
        kinds = [zmq.PULL, zmq.PUSH] if receiver else [zmq.PUSH, zmq.PULL]
        sockets = [context.socket(kind) for kind in kinds]
        for socket, endpoint in zip(sockets, endpoints, strict=True):
            socket.linger = 0
            socket.sndtimeo = socket.rcvtimeo = int(TIMEOUT_S * 1000)
            if receiver:
                socket.bind(endpoint)
            else:
                socket.connect(endpoint)
        try:
            yield sockets
        finally:
            for socket in sockets:
                socket.close()


def open_channel(receiver: bool, endpoint: str) -> Channel:
    """A channel's end; tcp without keys needs a word, and warns all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureEndpointWarning)
        open_end = Channel.bind if receiver else Channel.connect
        return open_end(endpoint, insecure=endpoint.startswith("tcp:"))


def pyzmq_send(socket: zmq.Socket[bytes], payloads: list[bytes]) -> None:
    for payload in payloads:
        socket.send(payload)


def pyzmq_receive(socket: zmq.Socket[bytes], count: int) -> int:
    return sum(socket.recv()[0] for _ in range(count))


def pyobj_send(socket: zmq.Socket[bytes], payloads: list[bytes]) -> None:
    for i, payload in enumerate(payloads):
        socket.send_pyobj({"id": i, "payload": payload})


def pyobj_receive(socket: zmq.Socket[bytes], count: int) -> int:
    return sum(socket.recv_pyobj()["payload"][0] for _ in range(count))


def channel_receive_batches(channel: Channel, count: int) -> int:
    checksum = 0
    while count:
        batch = channel.recv_many(timeout=TIMEOUT_S)
        checksum += int(np.asarray(batch.data)[np.asarray(batch.offsets)[:-1]].sum())
        count -= len(batch)
    return checksum


def channel_receive_objects(channel: Channel, count: int) -> int:
    checksum = 0
    while count:
        batch = channel.recv_many(timeout=TIMEOUT_S)
        for payload in batch:
            checksum += payload[0]
        count -= len(batch)
    return checksum


PYZMQ: dict[str, tuple[Callable[..., None], Callable[..., int]]] = {
    "pyzmq": (pyzmq_send, pyzmq_receive),
    "pyzmq-send_pyobj": (pyobj_send, pyobj_receive),
}
CHANNEL = {"zfast-batch": channel_receive_batches, "zfast-iter": channel_receive_objects}


def timed(action: Callable[[], object], checksum: Any) -> dict[str, Any]:
    """Time an action that ends with the acknowledgement."""
    start = time.perf_counter()
    action()
    return {"seconds": time.perf_counter() - start, "checksum": checksum}


def run_pyzmq(peer: str, receiver: bool, nbytes: int, count: int, endpoints: list[str]) -> None:
    send, receive = PYZMQ[peer]
    with pyzmq_sockets(receiver, endpoints) as (data, ack):
        if receiver:

            def answer(_: dict[str, Any]) -> dict[str, Any]:
                checksum = receive(data, count)
                ack.send(b"\1")
                return {"checksum": checksum}

            serve(answer, endpoints=[s.last_endpoint.rstrip(b"\0").decode() for s in (data, ack)])
            return
        payloads = make_payloads(nbytes, count)
        checksum = sum(payload[0] for payload in payloads)

        def send_all() -> None:
            send(data, payloads)
            ack.recv()

        serve(lambda _: timed(send_all, checksum))


def run_channel(peer: str, receiver: bool, nbytes: int, count: int, endpoints: list[str]) -> None:
    # A channel goes both ways: the acknowledgement needs no second endpoint.
    with open_channel(receiver, endpoints[0]) as channel:
        if receiver:

            def answer(_: dict[str, Any]) -> dict[str, Any]:
                checksum = CHANNEL[peer](channel, count)
                channel.send(True, timeout=TIMEOUT_S)
                return {"checksum": checksum}

            serve(answer, endpoints=[channel.endpoint, channel.endpoint])
            return
        payloads = make_payloads(nbytes, count)
        checksum = sum(payload[0] for payload in payloads)

        def send_all() -> None:
            channel.send_many(payloads, timeout=TIMEOUT_S)
            channel.recv(timeout=TIMEOUT_S)

        serve(lambda _: timed(send_all, checksum))


def main() -> None:
    role, peer, nbytes, count, *endpoints = sys.argv[1:]
    run = run_pyzmq if peer in PYZMQ else run_channel
    run(peer, role == "receiver", int(nbytes), int(count), endpoints)


if __name__ == "__main__":
    main()
