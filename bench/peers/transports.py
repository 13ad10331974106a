"""A sender or receiver of DataFrames of any size, one transfer acknowledged before the next.

Run: ``transports ROLE PEER ENDPOINT...``. A command gives the size and the number of transfers. The
receiver reads a value of every page of every column, then lets the frame go.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from bench.peers.control import serve
from bench.peers.dataframes import make_frame, touch
from bench.peers.links import (
    ChannelLink,
    Link,
    MultipartLink,
    PipeLink,
    ProxyStoreLink,
    SharedMemoryLink,
)
from bench.peers.memory import PeakMemory
from bench.peers.small_messages import timed

#: Larger frames are let go after a round, so that all peers together fit into memory.
MAX_KEPT_NBYTES = 200_000_000


def flight_link(receiver: bool, endpoints: list[str]) -> Link:
    """Arrow Flight's end; imported only where it runs."""
    from bench.peers.flight import FlightLink

    return FlightLink(receiver, endpoints)


LINKS: dict[str, Callable[[bool, list[str]], Link]] = {
    "pyzmq multipart": MultipartLink,
    "zfast channel": ChannelLink,
    "Pipe": PipeLink,
    "shared_memory, new": SharedMemoryLink,
    "shared_memory, reused": partial(SharedMemoryLink, reuse=True),
    "Arrow Flight": flight_link,
    "ProxyStore, file": ProxyStoreLink,
}


class Frames:
    """The frame of the size that was asked for last."""

    def __init__(self) -> None:
        self._nbytes = 0
        self._frame = pd.DataFrame()

    def get(self, nbytes: int) -> pd.DataFrame:
        if nbytes != self._nbytes:
            self.let_go()
            self._nbytes, self._frame = nbytes, make_frame(nbytes)
        return self._frame

    def let_go(self, above_nbytes: int = 0) -> None:
        if self._nbytes > above_nbytes:
            self._nbytes, self._frame = 0, pd.DataFrame()


def costs(memory: PeakMemory, faults_before: int) -> dict[str, int | None]:
    """What a round took besides time."""
    return {"peak_nbytes": memory.extra_nbytes(), "minor_faults": minor_faults() - faults_before}


def minor_faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def receiving(link: Link, command: dict[str, Any]) -> dict[str, Any]:
    memory, faults = PeakMemory(), minor_faults()
    checksum = 0.0
    for _ in range(command["count"]):
        frame = link.receive()
        checksum += touch(frame)
        # Before the acknowledgement: its memory may be used for the next one.
        del frame
        link.acknowledge()
    return {"checksum": checksum, **costs(memory, faults)}


def sending(link: Link, frames: Frames, command: dict[str, Any]) -> dict[str, Any]:
    frame = frames.get(command["nbytes"])
    # Added up as the receiver does, so that the sums are equal to the last bit.
    checksum = 0.0
    touched = touch(frame)
    for _ in range(command["count"]):
        checksum += touched

    def send_all() -> None:
        for _ in range(command["count"]):
            link.send(frame)
            link.wait()

    memory, faults = PeakMemory(), minor_faults()
    answer = {**timed(send_all, checksum), **costs(memory, faults)}
    frames.let_go(MAX_KEPT_NBYTES)
    return answer


def main() -> None:
    role, peer, *endpoints = sys.argv[1:]
    link = LINKS[peer](role == "receiver", endpoints)
    try:
        if role == "receiver":
            serve(partial(receiving, link), endpoints=link.endpoints)
        else:
            serve(partial(sending, link, Frames()))
    finally:
        link.close()


if __name__ == "__main__":
    main()
