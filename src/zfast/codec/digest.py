"""A digest of what a value is, wherever it came from and, mostly, however it is laid out.

It is a hash of the value's encoding, and equal values have equal encodings once three things are
taken out of it: which of several equal objects are one and the same (nothing is written as "the
same as before"), with what gaps an array's elements lie in memory, and which blocks the columns of
a DataFrame share. The order of an array's axes in memory stays: equal arrays in C and in Fortran
order have two digests, so what is cached for the one is missed, no more, for the other.

As in Prefect's own cache keys, the order of a DataFrame's columns does not matter and that of a
dictionary's items does; that of a set depends on the process.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pickle import PickleBuffer
from typing import Any

import numpy as np
import xxhash

from zfast.codec._numpy import Array, array_reducer, reduce_array, restore_array
from zfast.codec._pickler import Pickler, by_name, reduce_memoryview

#: How many digests of buffers are remembered.
MAX_REMEMBERED = 4096

Reduction = tuple[Any, ...]
Identify = Callable[[memoryview], Hashable | None]


class BufferDigests:
    """Digests of memory, each made once as long as its memory stays what it is. Threads: any.

    Args:
        identify: Names the memory of a buffer if it can never change, such as a part of a received
            block: the same name is the same bytes for ever. None if it may change.
    """

    def __init__(self, identify: Identify = lambda _: None) -> None:
        self._identify = identify
        self._lock = threading.Lock()
        self._remembered: OrderedDict[Hashable, bytes] = OrderedDict()

    def __reduce__(self) -> Reduction:
        # What is remembered, and what memory is called, means nothing in another process.
        return BufferDigests, ()

    def of(self, buffer: memoryview) -> bytes:
        """The digest of a buffer's bytes: 16 bytes. The GIL is released meanwhile."""
        name = self._identify(buffer)
        if name is None:
            return xxhash.xxh3_128_digest(buffer)
        with self._lock:
            digest = self._remembered.get(name)
            if digest is not None:
                self._remembered.move_to_end(name)
                return digest
        digest = xxhash.xxh3_128_digest(buffer)
        with self._lock:
            self._remembered[name] = digest
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return digest


def digest_large(value: object, min_nbytes: int, digests: BufferDigests) -> str | None:
    """Digest a value that holds at least ``min_nbytes`` in arrays, columns or Arrow buffers.

    Returns:
        32 hexadecimal digits; None if it holds less, or cannot be pickled.
    """
    if isinstance(value, (str, int, float, type(None))):
        return None
    header = io.BytesIO()
    buffers: list[memoryview] = []
    try:
        pickler = _CanonicalPickler(header, buffers)
        pickler.dump(_canonical_bytes(value))
    except MemoryError:
        raise
    except Exception:  # whatever hinders pickling: the caller has another way, and an error for it
        return None
    if sum(buffer.nbytes for buffer in buffers) + pickler.arrow_nbytes < min_nbytes:
        return None
    combined = xxhash.xxh3_128(header.getbuffer())
    # The same memory comes again where several columns have one index.
    seen: dict[tuple[int, int], bytes] = {}
    for buffer in buffers:
        place = np.frombuffer(buffer, np.uint8).ctypes.data, buffer.nbytes
        if place not in seen:
            seen[place] = digests.of(buffer)
        combined.update(seen[place])
    return combined.hexdigest()


def _canonical_bytes(value: object) -> object:
    if type(value) in (bytes, bytearray):
        return type(value).__name__, PickleBuffer(memoryview(value).toreadonly())  # type: ignore[arg-type]
    return value


class _CanonicalPickler(Pickler):
    """Writes equal values as equal streams. What it writes is never read."""

    def __init__(self, file: io.BytesIO, views: list[memoryview]) -> None:
        super().__init__(file, views)
        # No memo: an object that comes again is written again. Cycles are an error.
        self.fast = True
        self.arrow_nbytes = 0

    def _reducer_for(self, cls: type) -> Callable[[Any], Any] | None:
        if issubclass(cls, np.ndarray) and array_reducer(cls) is reduce_array:
            return _reduce_array
        if cls is memoryview:
            return _reduce_memoryview
        pandas: Any = sys.modules.get("pandas")
        if cls is getattr(pandas, "DataFrame", None):
            return _reduce_frame
        arrays: Any = getattr(pandas, "arrays", None)
        if issubclass(cls, getattr(arrays, "ArrowExtensionArray", ())):
            return _reduce_pandas_arrow
        if issubclass(cls, getattr(sys.modules.get("pyarrow"), "Array", ())):
            return self._reduce_arrow
        reducer = super()._reducer_for(cls)
        return reducer if reducer in (None, by_name) else partial(_reduce_without_setter, reducer)

    def _reduce_arrow(self, array: Any) -> Reduction:
        stream = _HashingStream()
        _write_arrow(array, stream)
        self.arrow_nbytes += stream.nbytes
        return str, (stream.hash.hexdigest(),)


def _reduce_without_setter(reducer: Callable[[Any], Any], value: Any) -> Any:
    # A state setter is given the object once more, which without a memo has no end.
    reduced = reducer(value)
    return reduced[:5] if isinstance(reduced, tuple) else reduced


def _reduce_array(array: Array) -> Any:
    reduced = reduce_array(array)
    if reduced is NotImplemented:
        return NotImplemented
    restore, (buffer, dtype, _, axes) = reduced
    # Pickle notes whether memory is writable, which is no part of the value.
    buffer = PickleBuffer(memoryview(buffer).toreadonly())
    # How an axis of one element lies in memory means nothing.
    order = tuple(axis for axis in axes or () if array.shape[axis] > 1)
    return restore, (buffer, dtype, array.shape, order if order != tuple(sorted(order)) else None)


def _reduce_memoryview(view: memoryview) -> Reduction:
    return reduce_memoryview(view.toreadonly())


def _reduce_frame(frame: Any) -> Reduction:
    # Prefect's key is made of the columns in sorted order, so that it does not matter.
    columns = [(name, _column(frame, name)) for name in sorted(frame.columns)]
    about = frame.columns.names, frame.attrs, frame.flags.allows_duplicate_labels
    return restore_array, (type(frame), frame.index, columns, about)


def _column(frame: Any, name: Any) -> Any:
    column = frame[name]
    if column.ndim != 1:  # several columns of one name
        return [_values(column.iloc[:, position]) for position in range(column.shape[1])]
    return _values(column)


def _values(column: Any) -> Any:
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


def _reduce_pandas_arrow(array: Any) -> Reduction:
    return restore_array, (type(array), array.dtype, array._pa_array)


class _HashingStream:
    """A file that is written to, and keeps only the hash of it."""

    closed = False

    def __init__(self) -> None:
        self.hash = xxhash.xxh3_128()
        self.nbytes = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.nbytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.nbytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _write_arrow(array: Any, stream: _HashingStream) -> None:
    """Write an array in Arrow's own format, the same wherever it lies in its buffers."""
    pyarrow: Any = sys.modules["pyarrow"]
    views = {
        pyarrow.string_view(): pyarrow.large_string(),
        pyarrow.binary_view(): pyarrow.large_binary(),
    }
    kind = str(array.type)
    if array.type in views:
        array = array.cast(views[array.type])
    elif array.offset or array.get_total_buffer_size() != array.nbytes:
        # A slice is written with some bytes of what follows it.
        try:
            array = pyarrow.concat_arrays([array])
        except pyarrow.ArrowException:
            pass  # a type that Arrow cannot copy
    batch = pyarrow.record_batch([array], names=[kind])
    with pyarrow.ipc.new_stream(pyarrow.PythonFile(stream, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
