"""A process that writes DataFrames to a Prefect result store and reads them back.

Run: ``store PEER NBYTES COUNT FOLDER``, with PREFECT_HOME set. A round writes COUNT new results,
reads them, checks them, and deletes them; both halves are timed. All peers find their files in the
page cache.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer

from bench.peers.control import serve
from bench.peers.dataframes import make_frame, touch
from bench.peers.memory import PeakMemory


def make_store(peer: str, folder: str) -> ResultStore:
    """A result store as a task's is, less the cache in memory that would answer every read."""
    storage: Any = LocalFileSystem(basepath=folder)
    serializer: Any = PickleSerializer()
    if peer != "stock":
        from zfast.prefect import ZfastInlineSerializer, ZfastSerializer, ZfastStorage

        if peer == "zfast":
            storage, serializer = ZfastStorage(basepath=folder), ZfastSerializer()
        else:
            serializer = ZfastInlineSerializer()
    return ResultStore(result_storage=storage, serializer=serializer, cache_result_in_memory=False)


def main() -> None:
    peer, nbytes, count, folder = sys.argv[1:]
    store = make_store(peer, folder)
    frame = make_frame(int(nbytes))
    checksum = touch(frame)

    def write(keys: list[str]) -> None:
        for key in keys:
            store.write(frame, key=key)

    def read(keys: list[str]) -> None:
        for key in keys:
            # Touched inside the time: a mapped file is read only now.
            result: pd.DataFrame = store.read(key).result
            if touch(result) != checksum:
                raise ValueError("the result read is not the one written")

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        keys = [uuid.uuid4().hex for _ in range(int(count))]
        memory = PeakMemory() if command.get("memory") else None
        start = time.perf_counter()
        write(keys)
        written = time.perf_counter()
        write_peak = memory.extra_nbytes() if memory else None
        memory = PeakMemory() if memory else None
        read_start = time.perf_counter()
        read(keys)
        done = time.perf_counter()
        read_peak = memory.extra_nbytes() if memory else None
        for key in keys:
            (Path(folder) / key).unlink()
        return {
            "write": written - start,
            "read": done - read_start,
            "write_peak": write_peak,
            "read_peak": read_peak,
        }

    serve(answer)


if __name__ == "__main__":
    main()
