"""States of task runs that no engine brought to their end."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State, StateDetails
from prefect.context import FlowRunContext
from prefect.states import Crashed

from zfast.errors import WorkerError


def crashed(message: str, error: BaseException, details: StateDetails) -> State[Any]:
    """The State of a task run that ended with ``error``, which ``message`` tells of.

    Args:
        details: Whose State it is: what takes the task run says by it of whom it takes.
    """
    return Crashed(message=message, data=error, state_details=details)


def crashed_by(error: WorkerError, details: StateDetails) -> State[Any]:
    """The State of a task run of which the hub says what went wrong."""
    # The detail, a remote traceback, stays with the exception.
    message = f"{error.message} – {error.hint}" if error.hint else error.message
    return crashed(message, error, details)


def active_flow_run_id() -> UUID | None:
    """The flow run that is active here, if one is."""
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None
