"""A worker as its hub sees it, wherever it runs and however it is reached."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.protocol import Stop

#: A worker that was told to stop, and has nothing to do or to wait for, is killed after so long.
STOP_GRACE_S = 5.0


@dataclass(eq=False)
class WorkerHandle(ABC):
    """A worker and how it fares. Threads: the hub's only.

    Attributes:
        routing_id: Its name, unique in the hub.
        last_used: When it was last given a job or had one done, by the monotonic clock.
        ready: It has said so: its imports are done.
        leaving: It gets no more jobs, and is stopped when it has none.
        stop_by: When it is killed, having been told to stop; by the monotonic clock.
        blobs: Digests of those that it has.
        is_local: A process of this hub, with which it shares memory.
    """

    routing_id: bytes
    last_used: float
    ready: bool = field(default=False, kw_only=True)
    leaving: bool = field(default=False, kw_only=True)
    stop_by: float = field(default=float("inf"), kw_only=True)
    blobs: set[bytes] = field(default_factory=set, kw_only=True)

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

    def stop(self) -> None:
        """Tell it to stop, once it has nothing to do."""
        self.leaving = True
        self.stop_by = time.monotonic() + STOP_GRACE_S
        self.send(Stop())
