"""Rounds of the rows by which two revisions are compared, with the zfast that is on the path.

Run: ``python -m bench.revision_rounds``; see `bench.processes.PeerProcess`. Of zfast it uses the
public API alone, which both revisions have.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench.peers.control import serve
from zfast import Channel

TIMEOUT_S = 60.0
SMALL_COUNT, PING_COUNT, ARRAYS_NBYTES, PACK_COUNT = 40_000, 300, 20_000_000, 100_000


def main() -> None:
    """Serve rounds until standard input ends."""
    with tempfile.TemporaryDirectory(prefix="zfast-bench-") as folder, ExitStack() as stack:
        rx = stack.enter_context(Channel.bind(f"ipc://{folder}/s"))
        tx = stack.enter_context(Channel.connect(rx.endpoint))
        payloads = [bytes([i & 0xFF]) + bytes(63) for i in range(SMALL_COUNT)]
        arrays = {f"column{i}": np.ones(ARRAYS_NBYTES // 8 // 4) for i in range(4)}

        def in_thread(send: Callable[[], object], receive: Callable[[], object]) -> None:
            sender = threading.Thread(target=send)
            sender.start()
            receive()
            sender.join()

        def receive_small() -> None:
            left = SMALL_COUNT
            while left:
                batch = rx.recv_many(timeout=TIMEOUT_S)
                np.asarray(batch.data)[np.asarray(batch.offsets)[:-1]].sum()
                left -= len(batch)

        def ping() -> None:
            for _ in range(PING_COUNT):
                tx.send({"answer": 42}, timeout=TIMEOUT_S)
                rx.send(rx.recv(timeout=TIMEOUT_S), timeout=TIMEOUT_S)
                tx.recv(timeout=TIMEOUT_S)

        def receive_arrays() -> None:
            value: dict[str, Any] = rx.recv(timeout=TIMEOUT_S)
            sum(array[::512].sum() for array in value.values())

        rows: dict[str, Callable[[], None]] = {
            "64 B payloads in batches, ipc": lambda: in_thread(
                lambda: tx.send_many(payloads, timeout=TIMEOUT_S), receive_small
            ),
            "round trip of a small dict, ipc": ping,
            "20 MB of arrays, ipc": lambda: in_thread(
                lambda: tx.send(arrays, timeout=TIMEOUT_S), receive_arrays
            ),
        }

        def answer(command: dict[str, Any]) -> dict[str, Any]:
            start_s = time.perf_counter()
            rows[command["row"]]()
            return {"seconds": time.perf_counter() - start_s}

        serve(answer, rows=list(rows), pid=os.getpid())


if __name__ == "__main__":
    main()
