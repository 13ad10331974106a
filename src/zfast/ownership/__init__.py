"""Which memory of a value nobody else can write to, so that it may be shared without a copy.

A task's result may lie in memory that other processes can map. It may be handed to them as it is
if nothing else in this process can write to it: no global, no closure, no other thread, no frame of
a suspended generator. Nobody can be asked, but CPython counts references::

    references to an object  =  those found in the value  +  those from elsewhere

An object with references from elsewhere is *shared*, and so is all it refers to. An array that
owns its memory and is not shared is *exclusive*: there is no other way to its memory than the
arrays that were found, and `Exclusive.seal` makes these read-only. DataFrames of pandas 3 go on
behaving like ordinary ones, since they copy a sealed block before they write to it. For the same
reason it does no harm that a frame is kept elsewhere; a plain array that is kept is not exclusive.

Whatever the walk does not understand, it misses references of, and what is referred to looks
shared. So mistakes cost a copy. What no count shows is an address that C code keeps without a
reference, ``array.ctypes.data`` for one. A program that makes a sealed array writable again with
``setflags`` is not held back.

Without the GIL counts mean something else, and nothing is exclusive. Nor is memory that is not
NumPy's: Arrow's, polars', a mapped file.
"""

from __future__ import annotations

import functools
import inspect
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from zfast.codec import IN_BAND_MAX_NBYTES
from zfast.codec._pandas import mark_shared
from zfast.ownership._judge import counts_can_be_trusted, judge
from zfast.ownership._walk import Array, Found, Kind, base_of, find

__all__ = ["Exclusive", "find_exclusive", "share_results"]

#: How many references are looked at before the walk gives up looking further: some 10 ms.
MAX_REFERENCES: Final = 20_000
#: A block is shared if at least one byte in this many is sent, and otherwise what is sent is
#: copied: a shared block lives as long as any part of it is used.
MAX_SLACK: Final = 2

_PLAIN_KINDS: Final = frozenset("biufcSUmMV")

Range = tuple[int, int]


class Exclusive:
    """Memory that nothing outside of one value can write to.

    It refers to the value until it is sealed. Addresses mean something as long as the value lives.
    """

    def __init__(self, found: Found | None = None, owners: Sequence[Array] = ()) -> None:
        self._found = found
        ranges = sorted((array.ctypes.data, array.nbytes) for array in owners)
        self._starts = [start for start, _ in ranges]
        self._nbytes = [nbytes for _, nbytes in ranges]
        self._owners = set(map(id, owners))

    @property
    def blocks(self) -> list[Range]:
        """Address and bytes of each exclusive block, by address; they do not overlap."""
        return list(zip(self._starts, self._nbytes, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks together."""
        return sum(self._nbytes)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def block_of(self, address: int, nbytes: int) -> Range | None:
        """The block that all of a piece of memory lies in, or None. Takes O(log blocks)."""
        position = bisect_right(self._starts, address) - 1
        if position < 0:
            return None
        start, length = self._starts[position], self._nbytes[position]
        return (start, length) if address + nbytes <= start + length else None

    def shareable(self, pieces: Sequence[Range]) -> list[bool]:
        """Say which pieces of memory are to be shared as they are; the others are to be copied.

        A block is shared if the pieces of it that are sent make up half of it or more. So what
        stays alive is at most twice what the copies would have taken.

        Args:
            pieces: Address and bytes of each buffer that is sent.
        """
        blocks = [self.block_of(*piece) for piece in pieces]
        sent = dict.fromkeys(filter(None, blocks), 0)
        for block, (_, nbytes) in zip(blocks, pieces, strict=True):
            if block is not None:
                sent[block] += nbytes
        return [block is not None and sent[block] * MAX_SLACK >= block[1] for block in blocks]

    def seal(self) -> None:
        """Make every array over the exclusive memory read-only, for good.

        To be called before anybody else gets the value. Frames, series and indexes then copy what
        they write to first.
        """
        found, self._found = self._found, None
        if found is None or not self._owners:
            return
        for array in found.arrays:
            if id(array) in self._owners or id(_owner_of(array)) in self._owners:
                np.ndarray.setflags(array, write=False)
        for container, kind in zip(found.containers, found.kinds, strict=True):
            if kind is Kind.BLOCK:
                mark_shared(container.refs)  # type: ignore[attr-defined]
            elif kind is Kind.INDEX and container._references is not None:  # type: ignore[attr-defined]
                mark_shared(container._references)  # type: ignore[attr-defined]


def find_exclusive(
    box: list[Any],
    *,
    min_nbytes: int = IN_BAND_MAX_NBYTES,
    max_references: int = MAX_REFERENCES,
) -> Exclusive:
    """Find the memory of a value that nothing else can write to.

    Args:
        box: A list with the value in it, which nothing else may refer to: no variable of the
            caller, only the list. So ``find_exclusive([make()])``.
        min_nbytes: Smaller arrays are left out.
        max_references: How far to look. What is beyond counts as shared.

    Threads: any; others may run meanwhile.
    """
    if not counts_can_be_trusted():
        return Exclusive()
    found = find(box, max_references)
    candidates = [array for array in found.arrays if _owns_memory(array, min_nbytes)]
    if not candidates:
        return Exclusive()
    # `candidates` is one more reference to each.
    wanted = set(map(id, candidates))
    del candidates
    shared = judge(found)
    return Exclusive(
        found, [array for array in found.arrays if id(array) in wanted and id(array) not in shared]
    )


def _owns_memory(array: Array, min_nbytes: int) -> bool:
    flags = array.flags
    return bool(
        flags.owndata
        and array.nbytes >= min_nbytes
        and (flags.c_contiguous or flags.f_contiguous)
        and array.dtype.kind in _PLAIN_KINDS
        and not array.dtype.hasobject
    )


def _owner_of(array: Any) -> Any:
    while isinstance(array, np.ndarray) and (base := base_of(array)) is not None:
        array = base
    return array


def share_results(
    function: Callable[..., Any],
    on_result: Callable[[Exclusive], None],
    *,
    min_nbytes: int = IN_BAND_MAX_NBYTES,
    worthwhile: Callable[[], bool] = lambda: True,
) -> Callable[..., Any]:
    """Wrap a function so that what is exclusive of its results is found and sealed.

    This is done right after it has returned, when its own variables are gone and nobody else has
    the value yet.

    Args:
        function: Any function, ``async`` or not. Generator functions are given back as they are.
        on_result: Called with what was found, in the thread of the call, before it returns.
        min_nbytes: Smaller arrays are left out, and stay writable.
        worthwhile: Asked after the call; if it says no, nothing is looked for or sealed.

    Returns:
        A callable that is called the same way and has all the attributes of ``function``, its
        ``__code__`` too, which Prefect's ``task_input_hash`` reads.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return function

    def look_at(box: list[Any]) -> Any:
        if worthwhile():
            exclusive = find_exclusive(box, min_nbytes=min_nbytes)
            exclusive.seal()
            on_result(exclusive)
        return box.pop()

    wrapper = _AsyncSharing if inspect.iscoroutinefunction(function) else _Sharing
    return wrapper(function, look_at)


class _Sharing:
    def __init__(self, function: Callable[..., Any], look_at: Callable[[list[Any]], Any]) -> None:
        self._look_at = look_at
        self.__wrapped__ = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Straight into the list: a variable would be one more reference.
        return self._look_at([self.__wrapped__(*args, **kwargs)])

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)


class _AsyncSharing(_Sharing):
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._look_at([await self.__wrapped__(*args, **kwargs)])
