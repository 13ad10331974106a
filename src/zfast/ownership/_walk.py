"""The walk: what a value refers to.

Only objects that are known to tell all their references, and to do nothing with what they refer
to, are looked into: containers, instances of classes written in Python, arrays and what pandas is
made of. Everything else is left alone, which is safe: a reference that is not found makes its
referent look shared.
"""

from __future__ import annotations

import enum
import gc
import sys
import types
import typing
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zfast.codec._pandas import copies_on_write

Array = npt.NDArray[Any]


_Length = Callable[[Any], int]


class Kind(enum.Enum):
    """What the walk makes of a type. Everything else it does not look into."""

    CONTAINER = enum.auto()
    ARRAY = enum.auto()
    WEAK = enum.auto()
    #: pandas: its in-place writes go through blocks, which copy first when told so.
    BLOCK = enum.auto()
    INDEX = enum.auto()
    MANAGER = enum.auto()
    MASKED = enum.auto()


#: Types in C that hold references and do nothing else with what they hold.
_HOLDERS: Final = frozenset(
    {object, list, tuple, dict, set, frozenset, deque, OrderedDict, defaultdict, partial}
    | {types.SimpleNamespace, types.MappingProxyType, typing.Generic}
)
#: The length of those that may be long; looking into them takes as many steps.
_LENGTHS: Final = tuple((cls, cls.__len__) for cls in (list, tuple, dict, set, frozenset, deque))
_MADE_IN_C: Final = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.BuiltinFunctionType,
)
# Flags of types (CPython's object.h).
_HEAP_TYPE: Final = 1 << 9
_INLINE_VALUES: Final = 1 << 2

# Taken from the class, so that no subclass can put Python code in their place.
base_of: Any = np.ndarray.base.__get__
elements_of: Any = np.ndarray.tolist

_python_made: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Walk:
    """How objects of one type are walked.

    Attributes:
        kind: What they are.
        length: What takes their length, if they may be long.
        inline: Whether they hold their attributes themselves even where they have a dictionary
            (since Python 3.13). It then shows the attributes, yet refers to nothing, and does not
            show as referred to.
    """

    kind: Kind
    length: _Length | None
    inline: bool


@dataclass(slots=True)
class Found:
    """What a walk found, each object in one list only; the judgement once it was made.

    Attributes:
        containers: Objects that hold others, the box first.
        kinds: What each of them is.
        shells: Dictionaries of instances, by id, where an instance holds its values itself.
        shell_owners: Which container an instance is, and the id of its dictionary.
        arrays: Arrays without Python objects in them, and views of those that have some.
        object_arrays: Arrays that own memory with Python objects in it.
        weak: Weak references.
    """

    containers: list[object] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    shells: dict[int, dict[str, object]] = field(default_factory=dict)
    shell_owners: list[tuple[int, int]] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    object_arrays: list[Array] = field(default_factory=list)
    weak: list[weakref.ref[object]] = field(default_factory=list)

    def __iter__(self) -> Iterator[object]:
        """All of them, by C code only."""
        return chain(
            self.containers, self.shells.values(), self.arrays, self.object_arrays, self.weak
        )


def find(box: list[object], max_references: int) -> Found:
    """Look for everything the value in ``box`` refers to.

    Past ``max_references`` it looks no further. What refers from there to an object that was
    found is then missing, so that this one looks shared.
    """
    found = Found()
    walks: dict[type, _Walk | None] = {}
    seen: set[int] = set()
    layer: list[object] = [box]
    left = max_references
    while layer and left > 0:
        following: list[object] = []
        for node in layer:
            cls = type(node)
            try:
                walk = walks[cls]
            except KeyError:
                walk = walks[cls] = _walk_of(cls)
            if walk is None or id(node) in seen:
                continue
            if walk.length is not None and walk.length(node) > left:
                continue
            seen.add(id(node))
            referents = _add(node, walk, found, left)
            if walk.inline and found.shell_owners:
                seen.add(found.shell_owners[-1][1])
            following += referents
            left -= len(referents)
            if left <= 0:
                break
        layer = following
    return found


def _add(node: Any, walk: _Walk, found: Found, max_elements: int) -> list[object]:
    """Note a node; what it refers to."""
    if walk.kind is Kind.WEAK:
        found.weak.append(node)
        return []
    referents = gc.get_referents(node)
    if walk.kind is Kind.ARRAY:
        base = base_of(node)
        if base is not None:
            referents.append(base)
        elif node.dtype == object and node.size <= max_elements:
            found.object_arrays.append(node)
            return referents + flat(elements_of(node), node.ndim)
        found.arrays.append(node)
        return referents
    if type(node) is dict and node and not referents:
        found.shells[id(node)] = node
        return list(node.values())
    if walk.inline:
        shell = object.__getattribute__(node, "__dict__")
        if not any(referent is shell for referent in referents):
            found.shells[id(shell)] = shell
            found.shell_owners.append((len(found.containers), id(shell)))
    found.containers.append(node)
    found.kinds.append(walk.kind)
    return referents


def flat(elements: Any, ndim: int) -> list[object]:
    """The elements of what ``elements_of`` gives for an array of ``ndim`` dimensions."""
    if ndim == 0:
        return [elements]
    for _ in range(ndim - 1):
        elements = list(chain.from_iterable(elements))
    return list(elements)


def _walk_of(cls: type) -> _Walk | None:
    kind = kind_of(cls)
    inline = sys.version_info >= (3, 13) and bool(cls.__flags__ & _INLINE_VALUES)
    if inline:
        getter = next(vars(base)["__dict__"] for base in cls.__mro__ if "__dict__" in vars(base))
        if type(getter) is not types.GetSetDescriptorType:
            return None
    if kind is None:
        return None
    length = next((length for base, length in _LENGTHS if issubclass(cls, base)), None)
    return _Walk(kind, length, inline)


def kind_of(cls: type) -> Kind | None:
    """Choose how objects of ``cls`` are walked; None if they are not looked into."""
    if cls is weakref.ref:
        return Kind.WEAK
    if issubclass(cls, type) or not all(map(_is_known, cls.__mro__)):
        return None
    if issubclass(cls, np.ndarray):
        return Kind.ARRAY
    kinds = _pandas_kinds()
    return next((kind for base, kind in kinds if issubclass(cls, base)), Kind.CONTAINER)


def _pandas_kinds() -> tuple[tuple[type, Kind], ...]:
    pandas: Any = sys.modules.get("pandas")
    try:
        return (
            (pandas._libs.internals.Block, Kind.BLOCK),
            (pandas._libs.internals.BlockValuesRefs, Kind.MANAGER),
            (pandas.core.internals.managers.BaseBlockManager, Kind.MANAGER),
            (pandas.Index, Kind.INDEX),
            (pandas.core.arrays.masked.BaseMaskedArray, Kind.MASKED),
        )
    except AttributeError:  # no pandas, or one that is made of something else
        return ()


def _is_known(cls: type) -> bool:
    if cls in _HOLDERS or cls is np.ndarray:
        return True
    module = str(cls.__module__)
    if module.partition(".")[0] == "pandas":
        if not (_pandas_kinds() and copies_on_write()):
            return False
        if module.startswith("pandas._libs."):
            return True
    try:
        return _python_made[cls]
    except KeyError:
        known = _python_made[cls] = _is_python_made(cls)
        return known


def _is_python_made(cls: type) -> bool:
    """A class statement made it: Python itself looks after the references of its instances.

    A type made in C may keep more than it tells, or write to what it holds.
    """
    return bool(cls.__flags__ & _HEAP_TYPE) and not any(
        isinstance(value, _MADE_IN_C)
        and cls in (getattr(value, "__objclass__", None), getattr(value, "__self__", None))
        for value in vars(cls).values()
    )
