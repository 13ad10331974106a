"""What subscribers are given: states of runs, and what happened to the flow of events itself."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

import msgspec

#: Version of a state's fields. New fields may be added without a new version: readers skip what
#: they do not know, and take the default of what they miss.
EVENT_VERSION = 1

#: Types of states that no other state follows.
FINAL_TYPES = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})


class Kind(str, Enum):
    """What an event is about; the second part of its topic."""

    TASK_RUN = "task-run"
    FLOW_RUN = "flow-run"
    WORKER = "worker"


#: What a subscriber is given that names no kinds.
RUN_KINDS = (Kind.TASK_RUN, Kind.FLOW_RUN)


class Input(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A result that was handed over to a task run.

    Attributes:
        run_id: The task run that made it.
        shared_nbytes: Bytes of it that stayed where they were made, and are read there.
        copied_nbytes: Bytes of it that travelled.
    """

    run_id: str
    shared_nbytes: int = 0
    copied_nbytes: int = 0


class StateEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A run is in another state.

    Attributes:
        version: Of these fields.
        kind: ``task-run`` or ``flow-run``.
        environment: Where the run is, such as ``prod``.
        run_id: The run's id, as Prefect writes it.
        run_name: Its name.
        state_id: The state's id; Prefect's own event has the same.
        state_type: Such as ``COMPLETED``.
        state_name: Such as ``Cached``.
        state_ns: When the state began by the wall clock, in ns since 1970.
        message: The state's message, at most 1,000 characters of it.
        name: The task's or the flow's name.
        flow_name: The flow's name; of a task run, that of the flow it belongs to.
        flow_run_id: The flow run, or that of the task run.
        run_count: How many times the run has begun.
        tags: Sorted.
        worker: ``host:pid`` of the process that reported it.
        inputs: With Running: results of other task runs that it was given. Their bytes are known
            where ``ZfastTaskRunner`` handed them over. The first 1,000 if the event is very large.
        handover_ns: With Running: how long it took to have the inputs, their memory mapped.
        published_ns: When it was published, by the wall clock.
        monotonic_ns: The same on the host's monotonic clock, which nobody sets back; 0 if unknown.
        publisher: The process start that published it, 32 hexadecimal digits. Not in the body.
        sequence: Its number among all that the publisher published, from 1. Not in the body.
        replayed: True for what the subscriber did not get live. Not in the body.
    """

    kind: str
    environment: str
    run_id: str
    state_id: str
    state_type: str
    state_name: str
    state_ns: int
    version: int = EVENT_VERSION
    run_name: str = ""
    message: str = ""
    name: str = ""
    flow_name: str = ""
    flow_run_id: str = ""
    run_count: int = 0
    tags: list[str] = []
    worker: str = ""
    inputs: list[Input] = []
    handover_ns: int = 0
    published_ns: int = 0
    monotonic_ns: int = 0
    publisher: str = ""
    sequence: int = 0
    replayed: bool = False

    @property
    def is_final(self) -> bool:
        """Whether no other state follows, unless someone forces one."""
        return self.state_type in FINAL_TYPES


class WorkerEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a worker of a ``ZfastTaskRunner`` fares, or the process of its flow; once a second.

    Attributes:
        version: Of these fields.
        kind: ``worker``.
        environment: As that of the flow's states.
        worker: ``host:pid``.
        state_name: ``Driver``, ``Starting``, ``Idle``, ``Busy``, or ``Gone``, which is its last.
        flow_name: The flow that it works for.
        flow_run_id: Its run.
        memory_nbytes: Its memory, without what it shares with others.
        arena_nbytes: Shared memory that it owns.
        lent_nbytes: Bytes of it that somebody has a lease on.
        leases: How many publications it has leases on.
        queued: Of a driver: how many task runs are with the runner and have not ended.
        replays: Of a driver: how many task runs have begun again because their worker died.
        published_ns: As of a state; the others that are not here too.
    """

    environment: str
    worker: str
    state_name: str
    kind: str = Kind.WORKER.value
    version: int = EVENT_VERSION
    flow_name: str = ""
    flow_run_id: str = ""
    memory_nbytes: int = 0
    arena_nbytes: int = 0
    lent_nbytes: int = 0
    leases: int = 0
    queued: int = 0
    replays: int = 0
    published_ns: int = 0
    monotonic_ns: int = 0
    publisher: str = ""
    sequence: int = 0
    replayed: bool = False

    @property
    def run_id(self) -> str:
        """What it is about, as a publisher remembers the last word on it."""
        return self.worker

    @property
    def is_final(self) -> bool:
        """Whether no other follows."""
        return self.state_name == "Gone"


class Gap(msgspec.Struct, kw_only=True, frozen=True):
    """Events are missing here; what follows is the current truth again.

    Attributes:
        publisher: Whose events, which may have ended; empty if it went before it could be joined.
        lost: How many of those that were asked for; 0 if that is not known.
    """

    publisher: str
    lost: int


class PublisherJoined(msgspec.Struct, kw_only=True, frozen=True):
    """Events of another publisher follow: a process began, or one began anew."""

    publisher: str


class PublisherLeft(msgspec.Struct, kw_only=True, frozen=True):
    """A publisher ended, or is out of reach."""

    publisher: str


Published: TypeAlias = StateEvent | WorkerEvent
Event: TypeAlias = Published | Gap | PublisherJoined | PublisherLeft
