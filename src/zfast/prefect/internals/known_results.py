"""Objects that Prefect knows as results of task runs, so that those who take them have an input."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from prefect.client.schemas.objects import RunType, State
from prefect.context import FlowRunContext
from prefect.results import ResultRecord  # type: ignore[attr-defined]

from zfast.prefect.internals.version import is_known

_COLLECTIONS = (list, tuple, set, dict)
#: What is in a longer list is not known, nor looked up: that takes no time then.
MAX_PARTS = 1000


def know_result(state: State[Any]) -> None:
    """Have Prefect know what a task run's final State holds as that run's result, in this flow.

    On threads its engine does, by the objects' addresses. What is decoded here would soon be gone,
    and others be where it was: so what can be watched is known, while it lives, and what cannot,
    such as a list, is not.
    """
    flow = FlowRunContext.get()
    if flow is None or not is_known():
        return
    without_data: State[Any] | None = None
    for each in _parts(state.data.result if isinstance(state.data, ResultRecord) else state.data):
        if type(each).__weakrefoffset__:
            without_data = without_data or state.model_copy(update={"data": None})
            gone = _forgetting(flow.run_results, id(each))
            flow.run_results[id(each)] = without_data, RunType.TASK_RUN, weakref.ref(each, gone)


def is_long(value: object) -> bool:
    """Whether a value holds, two layers deep, more than is looked at."""
    n_parts = sum(len(part) for part in _parts(value) if isinstance(part, _COLLECTIONS))
    return n_parts > MAX_PARTS


def _parts(result: object) -> Iterable[object]:
    """An object and, as in Prefect, what it holds itself."""
    if not isinstance(result, _COLLECTIONS) or len(result) > MAX_PARTS:
        return (result,)
    return (result, *(result.values() if isinstance(result, dict) else result))


def _forgetting(known: dict[int, Any], key: int) -> Any:
    return lambda _: known.pop(key, None)
