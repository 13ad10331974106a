"""A process that writes DataFrames to a Prefect result store and reads them back.

Run: ``store PEER BLOCK DATA NBYTES COUNT FOLDER``, with PREFECT_HOME set. A round writes COUNT new
results, asks whether they exist, reads them, checks them, and deletes them; each of the three is
timed. All peers find their files in the page cache.

PEER is a serializer, "stock" for Prefect's own; with ", key_storage" its metadata are kept apart.
BLOCK is "folder", a local one of the peer's own kind, or "remote": an fsspec file system, which
here is memory, so that no network is measured. DATA is "noise", which nothing makes smaller, or
"prices".
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer

from bench.peers.control import serve
from bench.peers.dataframes import COLUMNS, make_frame, touch
from bench.peers.memory import PeakMemory
from zfast.prefect import ZfastInlineSerializer, ZfastSerializer, ZfastStorage

SERIALIZERS: dict[str, Any] = {
    "stock": PickleSerializer,
    "zfast/inline": ZfastInlineSerializer,
    "zfast": ZfastSerializer,
}


def make_store(peer: str, block: str, folder: str) -> ResultStore:
    """A result store as a task's is, less the cache in memory that would answer every read."""
    name, _, apart = peer.partition(", ")
    storage: Any = LocalFileSystem(basepath=folder)
    if block == "remote":
        storage = RemoteFileSystem(basepath="memory://results")
    elif name == "zfast":
        storage = ZfastStorage(basepath=folder)
    return ResultStore(
        result_storage=storage,
        metadata_storage=LocalFileSystem(basepath=f"{folder}-keys") if apart else None,
        serializer=SERIALIZERS[name](),
        cache_result_in_memory=False,
    )


def make_prices(nbytes: int) -> pd.DataFrame:
    """Random walks in cents: what compression makes of it is what it makes of most tables."""
    rng = np.random.default_rng(7)
    rows = max(1, nbytes // (8 * COLUMNS))
    walks = {f"column{i}": rng.integers(-9, 10, rows).cumsum() for i in range(COLUMNS)}
    return pd.DataFrame(walks) / 100


def main() -> None:
    peer, block, data, nbytes, count, folder = sys.argv[1:]
    store = make_store(peer, block, folder)
    frame = (make_prices if data == "prices" else make_frame)(int(nbytes))
    checksum = touch(frame)

    def write(keys: list[str]) -> None:
        for key in keys:
            store.write(frame, key=key)

    def exists(keys: list[str]) -> None:
        for key in keys:
            if not store.exists(key):
                raise ValueError("a result that was written does not exist")

    def read(keys: list[str]) -> pd.DataFrame:
        for key in keys:
            # Touched inside the time: a mapped file is read only now.
            result: pd.DataFrame = store.read(key).result
            if touch(result) != checksum:
                raise ValueError("the result read is not the one written")
        return result

    def delete(keys: list[str]) -> None:
        for key in keys:
            storage: Any = store.result_storage
            if block == "remote":
                storage.filesystem.rm(storage._resolve_path(key))
            else:
                (Path(folder) / key).unlink()

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        keys = [uuid.uuid4().hex for _ in range(int(count))]
        memory = PeakMemory() if command.get("memory") else None
        start = time.perf_counter()
        write(keys)
        written = time.perf_counter()
        write_peak = memory.extra_nbytes() if memory else None
        exists_start = time.perf_counter()
        exists(keys)
        exists_end = time.perf_counter()
        memory = PeakMemory() if memory else None
        read_start = time.perf_counter()
        result = read(keys)
        done = time.perf_counter()
        # Mapped pages are the page cache's, and the system's to take back.
        read_peak = memory.extra_nbytes(but_files=True) if memory else None
        del result
        delete(keys)
        return {
            "write": written - start,
            "exists": exists_end - exists_start,
            "read": done - read_start,
            "write_peak": write_peak,
            "read_peak": read_peak,
        }

    serve(answer)


if __name__ == "__main__":
    main()
