"""Jobs: what the hub is given to run, and what can become of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

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
    """

    job_id: bytes
    code: Blob
    context: Blob
    parcels: list[Parcel]
    on_done: Callable[[Outcome], None]

    def settle(self, outcome: Outcome) -> None:
        """Tell whoever waits. What they raise is logged: it is not the hub's to fail by."""
        try:
            self.on_done(outcome)
        except Exception:
            logger.exception("the outcome of job %s was not delivered", self.job_id.hex())
