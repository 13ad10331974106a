"""Frames born in different kinds of memory, and reading them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

COLUMNS = 10
VALUE_NBYTES = 8
#: Arrow strings: what the columns are drawn from, and the mean size of one with its offset.
WORDS = [f"{'airport-of-departure'[: 4 + i % 16]}{i}" for i in range(1000)]
STRING_NBYTES = sum(map(len, WORDS)) / len(WORDS) + 8

Array = npt.NDArray[np.float64] | npt.NDArray[np.uint64]


def _names() -> list[str]:
    return [f"column{i}" for i in range(COLUMNS)]


def _of_block(block: npt.NDArray[np.float64]) -> pd.DataFrame:
    """A frame on a block's own memory, its columns contiguous."""
    np.random.default_rng(7).random(out=block)
    return pd.DataFrame(block.T, columns=_names(), copy=False)


def _rows(nbytes: int) -> int:
    return max(1, nbytes // (VALUE_NBYTES * COLUMNS))


def numpy_frame(nbytes: int) -> pd.DataFrame:
    """Memory that NumPy allocates in the thread that runs the task."""
    return _of_block(np.empty((COLUMNS, _rows(nbytes))))


def zeros_frame(nbytes: int) -> pd.DataFrame:
    """Memory that NumPy asks for zeroed."""
    return _of_block(np.zeros((COLUMNS, _rows(nbytes))))


def thread_frame(nbytes: int) -> pd.DataFrame:
    """Memory that NumPy allocates in a thread that the task starts."""
    blocks: list[npt.NDArray[np.float64]] = []
    thread = threading.Thread(target=lambda: blocks.append(np.empty((COLUMNS, _rows(nbytes)))))
    thread.start()
    thread.join()
    return _of_block(blocks[0])


def strings_frame(nbytes: int) -> pd.DataFrame:
    """Memory of Arrow's: each column is strings."""
    rows = max(1, int(nbytes / (STRING_NBYTES * COLUMNS)))
    words = pa.array(WORDS, pa.large_string())
    rng = np.random.default_rng(7)
    columns = {
        name: pd.array(words.take(pa.array(rng.integers(len(WORDS), size=rows))), dtype="str")
        for name in _names()
    }
    return pd.DataFrame(columns, copy=False)


MAKE: dict[str, Callable[[int], pd.DataFrame]] = {
    "numpy": numpy_frame,
    "zeros": zeros_frame,
    "thread": thread_frame,
    "strings": strings_frame,
}


def column_values(frame: pd.DataFrame) -> list[Array]:
    """The memory of every column as 8-byte values; of strings the offsets and the characters."""
    values: list[Array] = []
    for name in frame.columns:
        column = frame[name]
        if column.dtype == np.float64:
            values.append(column.to_numpy())
            continue
        array = pa.array(column.array)
        for chunk in array.chunks if isinstance(array, pa.ChunkedArray) else [array]:
            _, offsets_buffer, characters_buffer = chunk.buffers()
            # Less what Arrow leaves unused at the end of a buffer.
            offsets = np.frombuffer(offsets_buffer, np.uint64, len(chunk) + 1, 8 * chunk.offset)
            first, last = int(offsets[0]), int(offsets[-1])
            count = (last - first) // VALUE_NBYTES
            values += [offsets, np.frombuffer(characters_buffer, np.uint64, count, first)]
    return values


def read_all(frame: pd.DataFrame) -> float:
    """Add up every column."""
    return float(sum(values.sum().item() for values in column_values(frame)))
