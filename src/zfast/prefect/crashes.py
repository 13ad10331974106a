"""States of task runs that no engine brought to their end."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Crashed

from zfast.errors import WorkerError


def crashed(message: str, error: BaseException) -> State[Any]:
    """The State of a task run that ended with ``error``, which ``message`` tells of."""
    return Crashed(message=message, data=error)


def crashed_by(error: WorkerError) -> State[Any]:
    """The State of a task run of which the hub says what went wrong."""
    # The detail, a remote traceback, stays with the exception.
    message = f"{error.message} – {error.hint}" if error.hint else error.message
    return crashed(message, error)
