"""Ray and Dask as transports: a frame to a process of theirs, without Prefect.

Run: ``clusters PEER``. A command gives the size and the number of transfers. With Ray the frame is
put and an actor takes it; with Dask one worker has it and the other takes it. The taker reads a
value of every page of every column.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pandas as pd

from bench.peers.control import serve
from bench.peers.dataframes import make_frame, touch
from bench.peers.transports import MAX_KEPT_NBYTES, Frames

Transfer = Callable[[int, int], "tuple[float, list[float]]"]


@contextmanager
def ray_transfer() -> Iterator[Transfer]:
    """From this process by way of the object store."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)

    @ray.remote
    class Taker:
        def take(self, frame: pd.DataFrame) -> float:
            return touch(frame)

    taker = Taker.remote()
    frames = Frames()

    def transfer(nbytes: int, count: int) -> tuple[float, list[float]]:
        frame = frames.get(nbytes)
        start = time.perf_counter()
        taken = [ray.get(taker.take.remote(ray.put(frame))) for _ in range(count)]
        seconds = time.perf_counter() - start
        del frame
        frames.let_go(MAX_KEPT_NBYTES)
        return seconds, taken

    try:
        yield transfer
    finally:
        ray.shutdown()


@contextmanager
def dask_transfer() -> Iterator[Transfer]:
    """From one worker's memory to the other worker."""
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        giver, taker = sorted(client.scheduler_info()["workers"])

        def transfer(nbytes: int, count: int) -> tuple[float, list[float]]:
            # A worker keeps what it has got: each transfer needs a frame of its own.
            made = [
                client.submit(make_frame, nbytes, workers=[giver], pure=False) for _ in range(count)
            ]
            wait(made)
            start = time.perf_counter()
            taken = [
                client.submit(touch, frame, workers=[taker], pure=False).result() for frame in made
            ]
            return time.perf_counter() - start, taken

        yield transfer


TRANSFERS = {"Ray": ray_transfer, "Dask": dask_transfer}


@cache
def checksum(nbytes: int) -> float:
    return touch(make_frame(nbytes))


def answer(transfer: Transfer, command: dict[str, Any]) -> dict[str, float]:
    seconds, taken = transfer(command["nbytes"], command["count"])
    # Not to the last bit: what lies unaligned in a received buffer is added up in another order.
    sent = checksum(command["nbytes"])
    if not all(math.isclose(sum_taken, sent, rel_tol=1e-12) for sum_taken in taken):
        raise ValueError("what was received is not what was sent")
    return {"seconds": seconds}


def main() -> None:
    with TRANSFERS[sys.argv[1]]() as transfer:
        serve(partial(answer, transfer))


if __name__ == "__main__":
    main()
