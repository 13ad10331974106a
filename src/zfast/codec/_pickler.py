"""The one pickler of the codec: cloudpickle's, with reducers that send memory out of band.

cloudpickle's pickler is CPython's with two hooks, so that it serves everything: what plain pickle
can do it leaves to plain pickle, and functions and classes of ``__main__`` go by value, which
plain pickle would send as names that no other process knows. Its cost is in looking every type
and every class up in a chain of tables; here both look-ups are cut short.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import cloudpickle
import numpy as np

from zfast.codec import _numpy, _pandas
from zfast.codec._arrow import arrow_reducer
from zfast.codec._exceptions import exception_reducer
from zfast.codec._numpy import array_reducer
from zfast.codec._pandas import pandas_reducer

#: A smaller buffer is cheaper inside the header than as one of its own.
IN_BAND_MAX_NBYTES = 4096

#: Formats that ``memoryview.cast`` can give back.
_NATIVE_FORMATS = frozenset("cbB?hHiIlLqQnNfd")

_CloudPickler: Any = cloudpickle.Pickler
_cloudpickle_table: Any = cloudpickle.Pickler.dispatch_table

_PRIVATE: dict[tuple[str, str], Any] = {
    (shared.__module__, shared.__name__): private
    for shared, private in (
        (_numpy.restore_array, _numpy.restore_private_array),
        (_pandas.restore_frame_state, _pandas.restore_private_frame_state),
        (_pandas.restore_index, _pandas.restore_private_index),
    )
}


def by_name(obj: Any) -> Any:
    """Stands for Pickler._reduce_global, which as a bound method would make a reference cycle."""
    raise NotImplementedError


class Pickler(_CloudPickler):  # type: ignore[misc]
    """Pickles one value; not to be used twice, nor by two threads.

    Args:
        file: Where the header is written.
        views: Where the buffers are appended, read-only and one-dimensional.
    """

    # A plain dict, because C looks it up for each object. What cloudpickle's table has beyond
    # it is found once for each type, by _reducer_for.
    dispatch_table = copyreg.dispatch_table

    def __init__(self, file: io.BytesIO, views: list[memoryview]) -> None:
        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < IN_BAND_MAX_NBYTES:
                return True
            views.append(raw.toreadonly())
            return False

        super().__init__(file, protocol=5, buffer_callback=keep)
        self._reducers: dict[type, Callable[[Any], Any] | None] = {}
        self._some_by_value = bool(cloudpickle.list_registry_pickle_by_value())

    def reducer_override(self, obj: Any) -> Any:
        """Reduce what is ours or cloudpickle's; all else is left to pickle."""
        cls = type(obj)
        try:
            reducer = self._reducers[cls]
        except KeyError:
            reducer = self._reducers[cls] = self._reducer_for(cls)
        if reducer is by_name:
            return self._reduce_global(obj)
        return NotImplemented if reducer is None else reducer(obj)

    def _reducer_for(self, cls: type) -> Callable[[Any], Any] | None:
        if cls is FunctionType or issubclass(cls, type):
            return by_name
        if cls in copyreg.dispatch_table:  # registered by the user, who knows better
            return None
        if cls is memoryview:
            return reduce_memoryview
        if issubclass(cls, np.ndarray):
            return array_reducer(cls)
        reducer: Callable[[Any], Any] | None = (
            exception_reducer(cls)
            or pandas_reducer(cls)
            or arrow_reducer(cls)
            or _cloudpickle_table.get(cls)
        )
        return reducer

    def _reduce_global(self, obj: Any) -> Any:
        # The quick half of cloudpickle's own test whether a name is enough.
        module = obj.__module__
        if module != "__main__" and not self._some_by_value:
            home = sys.modules.get(module)
            if home is not None and getattr(home, obj.__qualname__, None) is obj:
                return NotImplemented
        return super().reducer_override(obj)


class ReferencePickler(Pickler):
    """A pickler that asks ``persistent_id`` about every object."""

    def __init__(
        self,
        file: io.BytesIO,
        views: list[memoryview],
        persistent_id: Callable[[object], object | None],
    ) -> None:
        super().__init__(file, views)
        self._persistent_id = persistent_id

    def persistent_id(self, obj: object) -> object | None:
        """Give the reference that stands for ``obj``, or None to pickle it."""
        return self._persistent_id(obj)


class Unpickler(pickle.Unpickler):
    """Unpickles with references, or into private memory (``copy``)."""

    def __init__(
        self,
        header: bytes,
        buffers: Any,
        *,
        copy: bool,
        persistent_load: Callable[[object], object] | None,
    ) -> None:
        super().__init__(io.BytesIO(header), buffers=buffers)
        self._copy = copy
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        """Import a global; where copies are asked for, take the restorer that makes them."""
        if self._copy and (module, name) in _PRIVATE:
            return _PRIVATE[module, name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Give the object that the reference ``pid`` stands for."""
        if self._persistent_load is None:
            raise pickle.UnpicklingError("a reference, and no persistent_load to resolve it")
        return self._persistent_load(pid)


class OutOfBand:
    """Wraps ``bytes`` or ``bytearray``, which pickle always copies into its stream."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.data), (pickle.PickleBuffer(self.data),)


def reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    """Reduce a memoryview to its bytes, out of band; one with gaps becomes ``bytes``."""
    if not view.c_contiguous or view.format.lstrip("@") not in _NATIVE_FORMATS:
        return bytes, (view.tobytes(),)
    shape = list(view.shape or ())
    if 0 in shape:
        return restore_empty_memoryview, (view.format, shape)
    return restore_memoryview, (pickle.PickleBuffer(view.cast("B")), view.format, shape)


def restore_empty_memoryview(view_format: str, shape: list[int]) -> memoryview:
    """Rebuild a memoryview with a zero in its shape, which no cast gives; its format as NumPy's."""
    return np.empty(shape, view_format.lstrip("@")).data


def restore_memoryview(buffer: Any, view_format: str, shape: list[int]) -> memoryview:
    """Rebuild a memoryview of the same format and shape."""
    return memoryview(buffer).cast("B").cast(view_format, shape)  # type: ignore[call-overload,no-any-return]
