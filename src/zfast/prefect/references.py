"""What stands for a future, or an annotation, in a call on its way to a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import BaseAnnotation

Reference = int | tuple[type[BaseAnnotation], Any]


def make_references(upstream: list[PrefectFuture[Any]]) -> Callable[[object], Reference | None]:
    """A ``persistent_id`` for ``zfast.codec.encode``.

    A future is put on ``upstream``, once, and its index there stands for it. An annotation, such
    as ``allow_failure``, is taken apart: pickled as it is, Prefect's tuple comes back nested.
    """
    indices: dict[int, int] = {}

    def persistent_id(value: object) -> Reference | None:
        if isinstance(value, PrefectFuture):
            if id(value) not in indices:
                indices[id(value)] = len(upstream)
                upstream.append(value)
            return indices[id(value)]
        if isinstance(value, BaseAnnotation):
            return type(value), value.unwrap()
        return None

    return persistent_id


def resolve_references(states: Sequence[Callable[[], State[Any]]]) -> Callable[[object], object]:
    """The ``persistent_load`` for it: a future's final State, an annotation."""

    def persistent_load(reference: Any) -> object:
        if isinstance(reference, int):
            return states[reference]()
        annotation, value = reference
        return annotation(value)

    return persistent_load
