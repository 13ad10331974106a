"""The judgement: which of the objects that a walk found are referred to from elsewhere too.

Finding them took a while, in which other threads ran. So all references are counted and listed
again by one call into C, during which nothing else runs. What that call saw is what is judged.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable
from typing import Any, Final

from zfast.ownership._walk import Found, Kind, base_of, elements_of, flat

#: Whoever else has one of these cannot write through it to memory that is sealed, and is not
#: surprised either: the write copies. What it holds may be exclusive all the same.
_BARRIERS: Final = (Kind.INDEX, Kind.MANAGER)

#: What ``sys.getrefcount`` says of an object that nothing but the list of the walk refers to.
_OWN_REFERENCES: Final = next(iter(map(sys.getrefcount, [object()])))

_dereference: Any = weakref.ref.__call__


def counts_can_be_trusted() -> bool:
    """Say whether a reference count is the number of references: not without the GIL."""
    gil: Any = getattr(sys, "_is_gil_enabled", None)
    return sys.implementation.name == "cpython" and (gil is None or bool(gil()))


def judge(found: Found) -> set[int]:
    """Decide which of the objects can be reached from outside of the box.

    Everything that such an object refers to can be reached too; a weak reference counts as well.

    Returns:
        Their ids.
    """
    ids = list(map(id, found))
    counts, weak_counts, held, shelled, array_held, bases, object_held, elements, targets = (
        _snapshot(found)
    )
    references = dict.fromkeys(ids, 0)
    weak_references = dict.fromkeys(ids, 0)
    successors: dict[int, list[int]] = {}

    def refer(nodes: Iterable[object], referents: Iterable[Iterable[object]]) -> None:
        for node, held in zip(map(id, nodes), referents, strict=True):
            known = successors.setdefault(node, [])
            for referent in map(id, held):
                if referent in references:
                    references[referent] += 1
                    known.append(referent)

    refer(found.containers, held)
    refer(found.arrays, array_held)
    refer(found.arrays, zip(bases, strict=True))
    refer(found.object_arrays, object_held)
    refer(found.object_arrays, map(flat, elements, (array.ndim for array in found.object_arrays)))
    for shell, values in zip(found.shells, shelled, strict=True):
        successors[shell] = list(map(id, values))
    for position, shell in found.shell_owners:
        references[shell] += 1
        successors[id(found.containers[position])].append(shell)
    for reference, target in zip(found.weak, map(id, targets), strict=True):
        successors[id(reference)] = [target]
        weak_references[target] = weak_references.get(target, 0) + 1

    shared: set[int] = set()
    for node, count, weak_count in zip(ids, counts, weak_counts, strict=True):
        others = count - _OWN_REFERENCES - references[node]
        if others < 0:
            return set(ids)  # one reference was found twice: nothing is understood
        if others or weak_count > weak_references[node]:
            shared.add(node)
    for container, kind in zip(found.containers, found.kinds, strict=True):
        if kind is Kind.MASKED:
            # pandas writes to the values under the mask even where it only reads (``cumsum``).
            shared.add(id(container._data))  # type: ignore[attr-defined]
    barriers = {
        id(container)
        for container, kind in zip(found.containers, found.kinds, strict=True)
        if kind in _BARRIERS
    }
    box = id(found.containers[0])
    return _spread(shared - barriers - {box}, successors, barriers)


def _snapshot(found: Found) -> list[list[Any]]:
    """Count all references and list them, at one moment: no other thread runs in between."""
    reads: tuple[Iterable[Any], ...] = (
        # Counted before the lists below refer to anything.
        map(sys.getrefcount, found),
        map(weakref.getweakrefcount, found),
        map(gc.get_referents, found.containers),
        map(list, map(dict.values, found.shells.values())),
        map(gc.get_referents, found.arrays),
        map(base_of, found.arrays),
        map(gc.get_referents, found.object_arrays),
        map(elements_of, found.object_arrays),
        map(_dereference, found.weak),
    )
    # A collection in the midst could run Python code, and with it another thread.
    collects = gc.isenabled()
    gc.disable()
    try:
        return list(map(list, reads))
    finally:
        if collects:
            gc.enable()


def _spread(shared: set[int], successors: dict[int, list[int]], barriers: set[int]) -> set[int]:
    waiting = list(shared)
    while waiting:
        for successor in successors.get(waiting.pop(), ()):
            if successor not in shared and successor not in barriers:
                shared.add(successor)
                waiting.append(successor)
    return shared
