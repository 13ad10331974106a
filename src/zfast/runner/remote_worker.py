"""Workers of other hosts, as their hub sees them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.protocol import HUB_MESSAGES
from zfast.runner.remote_protocol import End, Relayed
from zfast.runner.session import Session
from zfast.runner.vitals import LOOKS_PER_LEASE
from zfast.runner.worker_handle import WorkerHandle

#: After so many looks without a word a host gets no new jobs.
SILENT_LOOKS = 2


@dataclass(eq=False)
class RemoteHost:
    """One foreman that has joined. Threads: the hub's only.

    Attributes:
        name: As it calls itself: its machine's name, and a process id.
        user_id: The key it joined with; only that may resume the session.
        route: The connection that it has now; None while it has none.
        silent_looks: Looks since it was heard last. Looks are counted, not seconds: a hub that was
            itself stopped must not find that its hosts are overdue.
        is_retiring: Its workers have ended, and it gives away what data it has.
        workers: By the foreman's names for them.
    """

    session_id: bytes
    foreman_id: bytes
    name: str
    user_id: str
    route: bytes | None
    session: Session = field(default_factory=Session)
    silent_looks: int = 0
    is_retiring: bool = False
    workers: dict[bytes, RemoteWorker] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """The name of the machine that it runs on."""
        return self.name.rpartition(":")[0]

    @property
    def is_silent(self) -> bool:
        """It was not heard for a while, or is cut off."""
        return self.route is None or self.silent_looks >= SILENT_LOOKS

    @property
    def is_overdue(self) -> bool:
        """It was not heard for a whole lease."""
        return self.silent_looks >= LOOKS_PER_LEASE


@dataclass(eq=False)
class RemoteWorker(WorkerHandle):
    """A worker process of another host. Threads: the hub's only.

    Attributes:
        worker_id: The foreman's name for it.
        last_begun: As its foreman told when it died.
    """

    host: RemoteHost
    worker_id: bytes
    remote_pid: int
    last_begun: int | None = None
    cause: str = ""
    last_words: str = ""

    is_local: ClassVar[bool] = False

    def send(self, message: ControlMessage, buffers: Buffers = ()) -> None:
        """Queue a message for it in its host's session."""
        relayed = Relayed(self.worker_id, *HUB_MESSAGES.encode(message))
        self.host.session.post(relayed, buffers)

    def kill(self, verdict: str | None = None) -> None:
        """Have its foreman kill it."""
        self.leaving = True
        self.host.session.post(End(self.worker_id, verdict))

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the worker process {self.remote_pid} of {self.host.name}"

    @property
    def pid(self) -> int:
        """Its process, on its host."""
        return self.remote_pid

    @property
    def available(self) -> bool:
        """Whether it may be given jobs."""
        return self.ready and not self.leaving and not self.host.is_silent

    @property
    def begun(self) -> int | None:
        """What its foreman told when it died; None if nobody told."""
        return self.last_begun

    @property
    def cause_of_death(self) -> str:
        """What its foreman told, or what happened to its host."""
        return self.cause

    @property
    def words(self) -> str:
        """The last lines of its standard error, as its foreman told them."""
        return self.last_words

    def now_ready(self) -> None:
        """It has said that it is ready."""
        self.ready = True
        self.last_used = time.monotonic()
