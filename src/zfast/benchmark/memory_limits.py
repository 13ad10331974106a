"""Rounds that measure memory: copies, page faults."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
#: A round's seconds; what it prepares and cleans up is not in them.
Round = Callable[[], float]


def _view(memory: Any) -> Bytes:
    return np.frombuffer(memory, np.uint8)


def _timed_copy(target: Bytes, source: Bytes) -> float:
    start = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - start


@contextmanager
def _warm_copy(source: Bytes) -> Iterator[Round]:
    target = np.ones_like(source)
    yield lambda: _timed_copy(target, source)


@contextmanager
def _warm_read(source: Bytes) -> Iterator[Round]:
    values = source.view(np.uint64)

    def one_round() -> float:
        start = time.perf_counter()
        values.sum()
        return time.perf_counter() - start

    yield one_round


def _fresh_copy(advice: str) -> Callable[[Bytes], Any]:
    @contextmanager
    def make(source: Bytes) -> Iterator[Round]:
        def one_round() -> float:
            memory = mmap.mmap(-1, source.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, advice):
                memory.madvise(getattr(mmap, advice))
            return _timed_copy(_view(memory), source)

        yield one_round

    return make


@contextmanager
def _shared_file() -> Iterator[int]:
    """A file in memory, by its descriptor."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("zfast-bench-limits")
    else:
        fd, path = tempfile.mkstemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        os.unlink(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _fresh_shared_copy(source: Bytes) -> Iterator[Round]:
    def one_round() -> float:
        with _shared_file() as fd:
            os.ftruncate(fd, source.nbytes)
            return _timed_copy(_view(mmap.mmap(fd, source.nbytes)), source)

    yield one_round


@contextmanager
def _fresh_shared_write(source: Bytes) -> Iterator[Round]:
    data = source.data

    def one_round() -> float:
        with _shared_file() as fd:
            start, done = time.perf_counter(), 0
            while done < source.nbytes:
                done += os.write(fd, data[done:])
            return time.perf_counter() - start

    yield one_round


def _reused_shared_copy(new_mapping: bool) -> Callable[[Bytes], Any]:
    @contextmanager
    def make(source: Bytes) -> Iterator[Round]:
        with _shared_file() as fd:
            os.ftruncate(fd, source.nbytes)
            kept = _view(mmap.mmap(fd, source.nbytes))
            kept[:] = 1

            def one_round() -> float:
                start = time.perf_counter()
                target = _view(mmap.mmap(fd, source.nbytes)) if new_mapping else kept
                np.copyto(target, source)
                return time.perf_counter() - start

            yield one_round

    return make


@contextmanager
def _anonymous_faults(nbytes: int) -> Iterator[Round]:
    def one_round() -> float:
        memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        pages = _view(memory)[:: mmap.PAGESIZE]
        start = time.perf_counter()
        pages[:] = 1
        return time.perf_counter() - start

    yield one_round


@contextmanager
def _shared_faults(nbytes: int) -> Iterator[Round]:
    with _shared_file() as fd:
        os.ftruncate(fd, nbytes)
        _view(mmap.mmap(fd, nbytes))[:] = 1

        def one_round() -> float:
            start = time.perf_counter()
            _view(mmap.mmap(fd, nbytes))[:: mmap.PAGESIZE].max()
            return time.perf_counter() - start

        yield one_round


COPIES: dict[str, Callable[[Bytes], Any]] = {
    "copy, warm memory": _warm_copy,
    "copy, fresh memory, 4 KiB pages": _fresh_copy("MADV_NOHUGEPAGE"),
    "copy, fresh memory, huge pages": _fresh_copy("MADV_HUGEPAGE"),
    "copy, fresh shared memory, mapped": _fresh_shared_copy,
    "write(), fresh shared memory": _fresh_shared_write,
    "copy, reused shared memory, kept mapping": _reused_shared_copy(False),
    "copy, reused shared memory, new mapping": _reused_shared_copy(True),
    "read (sum), warm memory": _warm_read,
}
FAULTS: dict[str, Callable[[int], Any]] = {
    "page fault, fresh memory": _anonymous_faults,
    "page fault, shared memory that is there": _shared_faults,
}
