"""NumPy arrays to a few words and one buffer, and back.

NumPy's own reduction puts non-contiguous, datetime, masked and subclassed arrays into the pickle
stream, two copies each. This one sends the memory of every array without Python objects out of
band; only an array with gaps is copied, once.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Reduction = tuple[Any, ...]

#: Types whose ``dtype.str`` says all there is to say.
_PLAIN_KINDS = frozenset("biufcSUmM")


def array_reducer(cls: type) -> Callable[[Any], Any] | None:
    """Choose how arrays of ``cls``, an ``ndarray``, are reduced; None is pickle's way."""
    if cls in (np.ndarray, np.memmap):
        return reduce_array
    if cls is np.ma.MaskedArray:
        return _reduce_masked
    for name in ("__reduce__", "__reduce_ex__", "__setstate__"):
        if getattr(cls, name) is not getattr(np.ndarray, name):
            return None
    return _reduce_subclass


def reduce_array(array: Array) -> Any:
    """Reduce an array of any shape and strides; its class and its ``base`` are not kept."""
    dtype = array.dtype
    if dtype.hasobject or dtype.itemsize == 0:
        return NotImplemented
    axes: tuple[int, ...] | None = None
    if not array.flags.c_contiguous:
        # Axes from the slowest to the fastest: F order and any transposition become C order.
        strides = array.strides
        axes = tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))
        array = np.ascontiguousarray(array.transpose(axes))
    # As bytes, because NumPy lends no buffer of datetime64 and some other types.
    raw: Any = array.view(np.ndarray).reshape(-1).view(np.uint8)
    plain = dtype.kind in _PLAIN_KINDS and dtype.isbuiltin != 2 and dtype.metadata is None
    return restore_array, (PickleBuffer(raw), dtype.str if plain else dtype, array.shape, axes)


def _reduce_subclass(array: Array) -> Any:
    reduced = reduce_array(array)
    if reduced is NotImplemented:
        return NotImplemented
    return restore_subclass, (array.view(np.ndarray), type(array))


def _reduce_masked(array: np.ma.MaskedArray[Any, Any]) -> Reduction:
    mask = None if array.mask is np.ma.nomask else np.asarray(array.mask)
    return restore_masked, (np.asarray(array.data), mask, array.fill_value, array.hardmask)


def _shaped(flat: Array, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> Array:
    array = flat.reshape(shape)
    return array if axes is None else array.transpose(np.argsort(axes))


def restore_array(
    buffer: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> Array:
    """Rebuild a read-only array that borrows ``buffer`` and keeps it alive."""
    flat = np.frombuffer(buffer, dtype)
    flat.flags.writeable = False
    return _shaped(flat, shape, axes)


def restore_private_array(
    buffer: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> Array:
    """Rebuild a writable array. A writable ``buffer`` is taken over, any other is copied."""
    flat = np.frombuffer(buffer, dtype)
    return _shaped(flat if flat.flags.writeable else flat.copy(), shape, axes)


def restore_subclass(array: Array, cls: type[Array]) -> Array:
    """Rebuild a ``matrix``, ``recarray`` or other subclass without state of its own."""
    return array.view(cls)


def restore_masked(data: Array, mask: Array | None, fill_value: Any, hard_mask: bool) -> Any:
    """Rebuild a masked array over ``data`` and ``mask``, neither of them copied."""
    return np.ma.MaskedArray(
        data,
        mask=np.ma.nomask if mask is None else mask,
        fill_value=fill_value,
        hard_mask=hard_mask,
    )


def borrow(buffer: Any, *, copy: bool) -> memoryview | Array:
    """Give a received buffer as one-dimensional bytes at an address that arrays can use.

    Args:
        buffer: A C-contiguous buffer at any address.
        copy: Copy it to private, writable memory.

    Returns:
        A read-only view of ``buffer`` if its address is a multiple of 8, else of a copy. That is
        where libzmq puts large messages; ``longdouble`` wants 16 and is then read unaligned,
        which NumPy does right but more slowly.
    """
    view = memoryview(buffer)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    if not copy and address_of(view) % 8 == 0:
        return view.toreadonly()
    # NumPy's allocator, so that a shared arena is used where one is installed.
    fresh: Any = np.frombuffer(view, np.uint8).copy()
    return fresh if copy else memoryview(fresh).toreadonly()


def address_of(view: memoryview) -> int:
    """The address of a buffer's first byte."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
