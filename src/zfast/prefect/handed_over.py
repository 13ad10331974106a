"""What a task run was given by others, noted by the worker for whoever tells of its states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zfast.events.event import Input
from zfast.sharing.handover import Parcel

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun


@dataclass(slots=True)
class HandedOver:
    """See ``StateEvent.inputs`` and ``StateEvent.handover_ns``."""

    inputs: list[Input] = field(default_factory=list)
    handover_ns: int = 0

    def add(self, parcel: Parcel, state: State[Any]) -> None:
        """Note an upstream task run's final State, and the parcel that it came in."""
        if state.state_details.task_run_id is not None:
            shared_nbytes = parcel.shared_nbytes
            self.inputs.append(
                Input(
                    run_id=str(state.state_details.task_run_id),
                    shared_nbytes=shared_nbytes,
                    copied_nbytes=parcel.nbytes - shared_nbytes,
                )
            )


_current: ContextVar[HandedOver | None] = ContextVar("zfast_handed_over", default=None)


@contextlib.contextmanager
def handing_over() -> Iterator[HandedOver]:
    """While a worker takes a task run's inputs, and then runs it."""
    noted = HandedOver()
    token = _current.set(noted)
    try:
        yield noted
    finally:
        _current.reset(token)


def handed_over_to(task_run: TaskRun) -> HandedOver:
    """What is known of a task run's inputs: which they are, and in a worker their bytes too."""
    noted = _current.get()
    if noted is not None:
        return noted
    upstream = {
        str(each.id)
        for inputs in task_run.task_inputs.values()
        for each in inputs
        if each.input_type == "task_run"
    }
    return HandedOver([Input(run_id=run_id) for run_id in sorted(upstream)])
