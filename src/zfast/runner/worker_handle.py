"""A worker as its hub sees it, wherever it runs and however it is reached."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.job import Blob
from zfast.runner.protocol import Forget, Keep, Stop

#: Blobs that a worker keeps; with one more it starts anew.
MAX_BLOBS = 256
#: Bytes of those that it keeps and does not need now; with more it starts anew.
MAX_IDLE_BLOB_NBYTES = 128 << 20
#: A worker that was told to stop, and has nothing to do or to wait for, is killed after so long.
STOP_GRACE_S = 5.0


@dataclass(eq=False)
class WorkerHandle(ABC):
    """A worker and how it fares. Threads: the hub's only.

    Attributes:
        routing_id: Its name, unique in the hub.
        last_used: When it was started, last given a job or had one done, by the monotonic clock.
        ready: It has said so: its imports are done.
        leaving: It gets no more jobs, and is stopped when it has none.
        stop_by: When it is killed, having been told to stop; by the monotonic clock.
        blobs: The sizes of those that it has, by their digests.
        is_local: A process of this hub, with which it shares memory.
    """

    routing_id: bytes
    last_used: float
    ready: bool = field(default=False, kw_only=True)
    leaving: bool = field(default=False, kw_only=True)
    stop_by: float = field(default=float("inf"), kw_only=True)
    blobs: dict[bytes, int] = field(default_factory=dict, kw_only=True)

    is_local: ClassVar[bool]

    @abstractmethod
    def send(self, message: ControlMessage, buffers: Buffers = ()) -> None:
        """Send it a message. If it is gone that goes nowhere: its death is noticed."""

    @abstractmethod
    def kill(self, verdict: str | None = None) -> None:
        """End it at once; ``verdict`` says why, for those who read of its death."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process, on its host."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether it may be given jobs."""

    @property
    @abstractmethod
    def begun(self) -> int | None:
        """The serial of the last job that it has begun; 0 before the first, None if unknown."""

    @property
    @abstractmethod
    def cause_of_death(self) -> str:
        """How it ended, such as ``killed by SIGKILL``, and what may say why."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The last lines of its standard error; empty if there are none."""

    def keep(self, blobs: Iterable[Blob]) -> None:
        """Send it what it does not have of the blobs that it will need."""
        needed = {blob.digest: blob for blob in blobs}
        if needed.keys() <= self.blobs.keys():
            return
        idle = self.blobs.keys() - needed.keys()
        idle_nbytes = sum(self.blobs[digest] for digest in idle)
        if len(idle) + len(needed) > MAX_BLOBS or idle_nbytes > MAX_IDLE_BLOB_NBYTES:
            self.blobs.clear()
            self.send(Forget())
        for digest, blob in needed.items():
            if digest not in self.blobs:
                self.blobs[digest] = len(blob.data)
                self.send(Keep(digest), [blob.data])

    def stop(self) -> None:
        """Tell it to stop, once it has nothing to do."""
        self.leaving = True
        self.stop_by = time.monotonic() + STOP_GRACE_S
        self.send(Stop())
