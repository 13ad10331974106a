"""Jobs: what the hub is given to run, and what can become of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from zfast.errors import WorkerError
from zfast.sharing.handover import Parcel

logger = logging.getLogger("zfast.runner")


class JobCancelledError(WorkerError):
    """The job was taken back before a worker started it."""


class JobFailedError(WorkerError):
    """A worker could not run the job or send its result; ``detail`` has the remote traceback."""

    def __init__(self, error_type: str, message: str, traceback: str) -> None:
        super().__init__(f"{error_type}: {message}", detail=traceback)
        self.error_type = error_type


Outcome = list[Parcel] | WorkerError


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that many jobs refer to; a worker gets those of one digest once."""

    digest: bytes
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """The blob of some bytes."""
        return cls(hashlib.blake2b(data, digest_size=16).digest(), data)


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """Work for one worker.

    Attributes:
        job_id: 16 bytes, unique.
        code, context: What the executor gets beside the payloads, sent once to each worker.
        parcels: What the executor gets; their buffers must not change.
        on_done: Called once, on the hub's thread, with the result's parcels or what went wrong.
        on_replay: Called on the hub's thread when a worker has died of it and it will be run again,
            with the number of the next attempt and how the worker died.
        client: Whose it is; clients take turns.
        first_attempt: Its number, above 1 if it was run before as another job of this id.
        deaths: How workers died of it, first those of the other job; the hub adds to it.
    """

    job_id: bytes
    code: Blob
    context: Blob
    parcels: list[Parcel]
    on_done: Callable[[Outcome], None]
    on_replay: Callable[[int, str], None] | None = None
    client: bytes = b""
    first_attempt: int = 1
    deaths: list[str] = field(default_factory=list)

    def tell_replay(self, attempt: int, cause: str) -> None:
        """Tell whoever cares. What they raise is logged."""
        if self.on_replay is not None:
            try:
                self.on_replay(attempt, cause)
            except Exception:
                logger.exception("nobody heard that job %s runs again", self.job_id.hex())

    def settle(self, outcome: Outcome) -> None:
        """Tell whoever waits. What they raise is logged: it is not the hub's to fail by."""
        try:
            self.on_done(outcome)
        except Exception:
            logger.exception("the outcome of job %s was not delivered", self.job_id.hex())
