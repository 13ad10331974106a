"""pandas objects over borrowed, read-only memory that behave like ordinary ones.

pandas raises on an in-place write to a bare read-only block. It copies such a block first when
its reference count says that another frame looks at the same memory – which is the truth of a
received buffer. So every received block and index is given one more reference: to a sentinel
that lives as long as the process. It pins no data, and unlike a hidden twin of the frame it is
also seen by whatever was derived from the frame (``rename``, ``reset_index``, a column, a slice)
and outlives it.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable
from typing import Any

Reduction = tuple[Any, ...]

#: The arrays of Int64, Float64, boolean and their like: values and a mask.
_MASKED_ARRAYS = ("IntegerArray", "FloatingArray", "BooleanArray")

_sentinel: Any = None


def pandas_reducer(cls: type) -> Callable[[Any], Any] | None:
    """Choose how objects of ``cls`` are reduced; None if they are not of pandas."""
    pandas: Any = sys.modules.get("pandas")
    if issubclass(cls, getattr(pandas, "DataFrame", ())) or issubclass(
        cls, getattr(pandas, "Series", ())
    ):
        return _reduce_frame
    if issubclass(cls, getattr(pandas, "Index", ())):
        return _reduce_index
    arrays: Any = getattr(pandas, "arrays", None)
    if issubclass(cls, getattr(arrays, "ArrowExtensionArray", ())):
        return _reduce_arrow_array
    masked = (getattr(arrays, name, ()) for name in _MASKED_ARRAYS)
    if any(issubclass(cls, array) for array in masked):
        return _reduce_masked_array
    return None


def _reduce_frame(frame: Any) -> Reduction:
    reduced: Reduction = tuple(frame.__reduce_ex__(5))
    if len(reduced) < 3 or reduced[2] is None or any(part is not None for part in reduced[3:]):
        return reduced  # a subclass with a way of its own
    return (*reduced[:3], None, None, restore_frame_state)


def _reduce_index(index: Any) -> Reduction:
    reduced: Reduction = tuple(index.__reduce_ex__(5))
    if any(part is not None for part in reduced[2:]):
        return reduced
    return restore_index, reduced[:2]


def _reduce_arrow_array(array: Any) -> Reduction:
    # pandas' own __getstate__ copies all chunks into one, even where there is only one.
    state = dict(array.__dict__)
    chunked = state.get("_pa_array")
    if chunked is None:
        return tuple(array.__reduce_ex__(5))
    if chunked.num_chunks == 0:  # its type would be lost
        state["_pa_array"] = chunked.combine_chunks()
    if "_cache" in state:
        state["_cache"] = {}
    newobj: Any = copyreg.__newobj__  # type: ignore[attr-defined]
    return newobj, (type(array),), state


def _reduce_masked_array(array: Any) -> Reduction:
    reduced: Reduction = tuple(array.__reduce_ex__(5))
    if len(reduced) < 3 or any(part is not None for part in reduced[3:]):
        return reduced
    return (*reduced[:3], None, None, restore_masked_array_state)


def restore_masked_array_state(array: Any, state: Any) -> None:
    """Fill a new masked array with values of its own and a borrowed mask.

    pandas writes to the values under the mask even where it only reads (``cumsum``, ``cummax``).
    """
    array.__dict__.update(state)
    if not array._data.flags.writeable:
        array._data = array._data.copy()


def restore_frame_state(frame: Any, state: Any) -> None:
    """Fill a new DataFrame or Series; its first in-place write will copy what it writes to."""
    frame.__setstate__(state)
    try:
        references = [block.refs for block in frame._mgr.blocks] if copies_on_write() else None
    except AttributeError:  # a pandas that keeps count in another way
        references = None
    if references is None:
        frame._mgr = frame._mgr.copy(deep=True)
        return
    for reference in references:
        mark_shared(reference)


def restore_index(rebuild: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Rebuild an index; columns made from it (``reset_index``) copy on write too."""
    index = rebuild(*args)
    references = getattr(index, "_references", None)
    if references is not None and copies_on_write():
        mark_shared(references)
    return index


def restore_private_frame_state(frame: Any, state: Any) -> None:
    """Fill a new DataFrame or Series whose memory is its own."""
    frame.__setstate__(state)


def restore_private_index(rebuild: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Rebuild an index whose memory is its own."""
    return rebuild(*args)


def mark_shared(references: Any) -> None:
    """Give a block's or an index's ``BlockValuesRefs`` the sentinel: it copies on write now."""
    references.add_reference(_shared())


def copies_on_write() -> bool:
    """Say whether this pandas copies a block before it writes to it, if it is shared."""
    # pandas 2 writes through by default: there a received frame is copied once instead.
    return int(sys.modules["pandas"].__version__.split(".")[0]) >= 3


def _shared() -> Any:
    global _sentinel
    if _sentinel is None:
        pandas: Any = sys.modules["pandas"]
        _sentinel = pandas.Series([0])._mgr.blocks[0]
    return _sentinel
