"""A sender or receiver of pandas DataFrames, one transfer acknowledged before the next.

Run: ``dataframes ROLE PEER NBYTES COUNT KEEP ENDPOINT ACK_ENDPOINT``. The receiver reads a value of
every page of every column and keeps the last KEEP frames alive.
"""

from __future__ import annotations

import pickle
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import zmq

from bench.peers.control import serve
from bench.peers.small_messages import TIMEOUT_S, open_channel, pyzmq_sockets, timed

COLUMNS = 10
#: float64 values in a page of 4 KiB.
PAGE_VALUES = 512


def make_frame(nbytes: int) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    rows = max(1, nbytes // (8 * COLUMNS))
    return pd.DataFrame({f"column{i}": rng.random(rows) for i in range(COLUMNS)})


def touch(frame: pd.DataFrame) -> float:
    """Read every page of every column."""
    return float(sum(frame[name].to_numpy()[::PAGE_VALUES].sum() for name in frame.columns))


def multipart_send(socket: zmq.Socket[bytes], frame: pd.DataFrame) -> None:
    buffers: list[pickle.PickleBuffer] = []
    header = pickle.dumps(frame, protocol=5, buffer_callback=buffers.append)
    socket.send_multipart([header, *(buffer.raw() for buffer in buffers)], copy=False)


def multipart_receive(socket: zmq.Socket[bytes]) -> pd.DataFrame:
    header, *buffers = socket.recv_multipart(copy=False)
    frame: pd.DataFrame = pickle.loads(header.buffer, buffers=[b.buffer for b in buffers])
    return frame


def pyobj_send(socket: zmq.Socket[bytes], frame: pd.DataFrame) -> None:
    socket.send_pyobj(frame, protocol=5)


def pyobj_receive(socket: zmq.Socket[bytes]) -> pd.DataFrame:
    frame: pd.DataFrame = socket.recv_pyobj()
    return frame


PYZMQ: dict[str, tuple[Callable[..., None], Callable[..., pd.DataFrame]]] = {
    "pyzmq-send_pyobj": (pyobj_send, pyobj_receive),
    "pyzmq-multipart": (multipart_send, multipart_receive),
}


def receiving(
    receive: Callable[[], pd.DataFrame], acknowledge: Callable[[], object], count: int, keep: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    kept: deque[pd.DataFrame] = deque(maxlen=keep)

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        checksum = 0.0
        for _i in range(count):
            frame = receive()
            checksum += touch(frame)
            kept.append(frame)
            del frame
            acknowledge()
        return {"checksum": checksum}

    return answer


def sending(
    send: Callable[[pd.DataFrame], None], wait: Callable[[], object], nbytes: int, count: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    frame = make_frame(nbytes)
    # Added up as the receiver does, so that the sums are equal to the last bit.
    checksum = 0.0
    for _i in range(count):
        checksum += touch(frame)

    def send_all() -> None:
        for _i in range(count):
            send(frame)
            wait()

    return lambda _: timed(send_all, checksum)


def main() -> None:
    role, peer, nbytes, count, keep, *endpoints = sys.argv[1:]
    receiver = role == "receiver"
    transfers = int(count)
    if peer in PYZMQ:
        send, receive = PYZMQ[peer]
        with pyzmq_sockets(receiver, endpoints) as (data, ack):
            if receiver:
                bound = [s.last_endpoint.rstrip(b"\0").decode() for s in (data, ack)]
                acknowledge = lambda: ack.send(b"\1")  # noqa: E731
                answer = receiving(lambda: receive(data), acknowledge, transfers, int(keep))
                serve(answer, endpoints=bound)
            else:
                serve(sending(lambda f: send(data, f), ack.recv, int(nbytes), transfers))
        return
    with open_channel(receiver, endpoints[0]) as channel:
        receive_next = lambda: channel.recv(timeout=TIMEOUT_S)  # noqa: E731
        if receiver:
            acknowledge = lambda: channel.send(True, timeout=TIMEOUT_S)  # noqa: E731
            answer = receiving(receive_next, acknowledge, transfers, int(keep))
            serve(answer, endpoints=[channel.endpoint, channel.endpoint])
        else:
            send_frame = lambda f: channel.send(f, timeout=TIMEOUT_S)  # noqa: E731
            serve(sending(send_frame, receive_next, int(nbytes), transfers))


if __name__ == "__main__":
    main()
