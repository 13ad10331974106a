"""pyarrow and polars values to Arrow buffers, and back.

pyarrow pickles out of band by itself, but a slice takes its whole parent along; polars pickles
into the stream. Tables, batches and chunked arrays of pyarrow come down to their arrays.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

import numpy as np

Reduction = tuple[Any, ...]

#: An array may refer to this much more than it needs before it is cut to size by a copy.
_SLACK_NBYTES = 4096


def arrow_reducer(cls: type) -> Callable[[Any], Any] | None:
    """Choose how objects of ``cls`` are reduced; None if pickle does it well."""
    pyarrow: Any = sys.modules.get("pyarrow")
    if issubclass(cls, getattr(pyarrow, "Array", ())):
        return _reduce_array
    polars: Any = sys.modules.get("polars")
    if cls is getattr(polars, "DataFrame", None):
        return _reduce_polars_frame
    if cls is getattr(polars, "Series", None):
        return _reduce_polars_series
    if cls is getattr(polars, "LazyFrame", None):
        return _reduce_polars_lazyframe
    return None


def _reduce_array(array: Any) -> Reduction:
    return tuple(_compacted(array).__reduce__())


def _compacted(array: Any) -> Any:
    referred = array.get_total_buffer_size()
    if referred <= _SLACK_NBYTES:
        return array
    pyarrow: Any = sys.modules["pyarrow"]
    try:
        if str(array.type) in ("string_view", "binary_view"):
            return _compacted_view(pyarrow, array, referred)
        if _fits(referred, array.nbytes):
            return array
        return pyarrow.concat_arrays([array])
    except pyarrow.ArrowException:
        return array  # a type that Arrow cannot copy goes with all it refers to


def _fits(referred: int, needed: int) -> bool:
    return referred <= needed + needed // 8 + _SLACK_NBYTES


def _compacted_view(pyarrow: Any, array: Any, referred: int) -> Any:
    # nbytes counts all the text that the views could point into: read their lengths instead.
    # A view is 16 bytes, its length first; text of up to 12 bytes is inside it.
    words = np.frombuffer(array.buffers()[1] or b"", np.int32).reshape(-1, 4)
    lengths = words[array.offset : array.offset + len(array), 0]
    needed = 16 * len(array) + int(lengths[lengths > 12].sum(dtype=np.int64))
    if _fits(referred, needed):
        return array
    is_string = array.type == pyarrow.string_view()
    flat = array.cast(pyarrow.large_string() if is_string else pyarrow.large_binary())
    return flat.cast(array.type)


def _reduce_polars_frame(frame: Any) -> Reduction:
    polars: Any = sys.modules["polars"]
    if _holds_objects(frame.dtypes):
        return polars.DataFrame, (frame.get_columns(),)
    table = _polars_table(frame)
    if table is not None:
        return restore_polars_frame, (table,)
    stream = frame.write_ipc_stream(None, compat_level=polars.CompatLevel.newest())
    return restore_polars_ipc, (PickleBuffer(stream.getbuffer().toreadonly()),)


def _holds_objects(dtypes: list[Any]) -> bool:
    """Whether there are Object columns; polars itself would send their pointers as data."""
    polars: Any = sys.modules["polars"]
    if any(dtype.is_nested() and "Object" in repr(dtype) for dtype in dtypes):
        raise TypeError("cannot pickle polars Objects inside nested columns")
    return polars.Object in dtypes


def _polars_table(frame: Any) -> Any:
    """The frame as a pyarrow Table without a copy, or None if something would be lost."""
    polars: Any = sys.modules["polars"]
    if importlib.util.find_spec("pyarrow") is None:
        return None
    levels = polars.CompatLevel
    try:
        table = frame.to_arrow(compat_level=levels.newest())
        # polars counts the text of strings but not the views of it.
        needed = frame.estimated_size() + 16 * frame.height * frame.width
        if not _fits(table.get_total_buffer_size(), 2 * needed):
            # A slice: its strings would take the text of all of its parent along.
            table = frame.to_arrow(compat_level=levels.oldest())
        back = polars.from_arrow(table.slice(0, 0))
    except Exception:  # Int128 and what else pyarrow has no type for
        return None
    return table if back.schema == frame.schema and table.num_rows == frame.height else None


def _reduce_polars_series(series: Any) -> Reduction:
    if _holds_objects([series.dtype]):
        return type(series), (series.name, series.to_list(), series.dtype)
    return restore_polars_series, (series.to_frame(), series.name)


def _reduce_polars_lazyframe(frame: Any) -> Any:
    state = frame.__getstate__()
    if type(state) is not bytes:
        return NotImplemented
    return restore_polars_lazyframe, (PickleBuffer(state),)


def restore_polars_frame(table: Any) -> Any:
    """Rebuild a polars DataFrame over the memory of a pyarrow Table."""
    import polars

    return polars.from_arrow(table, rechunk=False)


def restore_polars_ipc(buffer: Any) -> Any:
    """Rebuild a polars DataFrame from an Arrow IPC stream, copying it."""
    import polars

    return polars.read_ipc_stream(bytes(buffer))


def restore_polars_series(frame: Any, name: str) -> Any:
    """Rebuild a polars Series from a DataFrame of one column."""
    return frame.to_series(0).alias(name)


def restore_polars_lazyframe(buffer: Any) -> Any:
    """Rebuild a polars LazyFrame from its serialized plan."""
    import polars

    frame = polars.LazyFrame.__new__(polars.LazyFrame)
    frame.__setstate__(bytes(buffer))
    return frame
