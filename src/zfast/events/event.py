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
    published_ns: int = 0
    monotonic_ns: int = 0
    publisher: str = ""
    sequence: int = 0
    replayed: bool = False

    @property
    def is_final(self) -> bool:
        """Whether no other state follows, unless someone forces one."""
        return self.state_type in FINAL_TYPES


class Gap(msgspec.Struct, kw_only=True, frozen=True):
    """Events are missing here; what follows is the current truth again.

    Attributes:
        publisher: Whose events; empty if it went before it could be joined.
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


Event: TypeAlias = StateEvent | Gap | PublisherJoined | PublisherLeft
