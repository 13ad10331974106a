"""Which events a subscription is for: the prefixes to ask for, and what is left to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence

from zfast.errors import ConfigError
from zfast.events.event import RUN_KINDS, Kind, Published, StateEvent
from zfast.events.messages import MAX_PREFIXES
from zfast.events.topics import PARTS, level_of, make_topic, parse_pattern, without_overlaps

ENVIRONMENT_VARIABLE = "ZFAST_ENVIRONMENT"


class Filters:
    """See ``Subscription`` for the arguments.

    Attributes:
        prefixes: What to subscribe to.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        *,
        environment: str | None,
        topics: Sequence[str],
        flows: Sequence[str],
        tasks: Sequence[str],
        kinds: Sequence[str],
        states: Sequence[str],
        runs: Sequence[str],
    ) -> None:
        for name, value in (
            ("topics", topics), ("flows", flows), ("tasks", tasks), ("kinds", kinds),
            ("states", states), ("runs", runs),
        ):  # fmt: skip
            if isinstance(value, str):
                raise ConfigError(f"{name} is a list of strings, not the string {value!r}")
        self._flows, self._tasks = frozenset(flows), frozenset(tasks)
        self._kinds = _check_kinds(kinds, only_tasks=bool(tasks))
        self._states = frozenset(state.casefold() for state in states)
        self._runs = frozenset(str(run) for run in runs)
        self.prefixes = _prefixes(environment, topics, self._flows, self._kinds)

    def match(self, event: Published) -> bool:
        """Whether an event under one of the prefixes is wanted."""
        if not isinstance(event, StateEvent):
            return event.kind in self._kinds and (not self._flows or event.flow_name in self._flows)
        return (
            event.kind in self._kinds
            and (not self._flows or event.flow_name in self._flows)
            and (not self._tasks or event.name in self._tasks)
            and (
                not self._states
                or event.state_name.casefold() in self._states
                or event.state_type.casefold() in self._states
            )
            and (not self._runs or event.run_id in self._runs or event.flow_run_id in self._runs)
        )


def current_environment() -> str:
    """The environment of this process: ``ZFAST_ENVIRONMENT``, else ``default``."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or "default"


def _check_kinds(kinds: Sequence[str], *, only_tasks: bool) -> frozenset[str]:
    known = frozenset(kind.value for kind in Kind)
    chosen = frozenset(kinds) or frozenset(kind.value for kind in RUN_KINDS)
    if not chosen <= known:
        raise ConfigError(
            f"{sorted(chosen - known)} are no kinds of events", hint=f"known: {sorted(known)}"
        )
    return chosen & {Kind.TASK_RUN.value} if only_tasks else chosen


def _prefixes(
    environment: str | None, topics: Sequence[str], flows: frozenset[str], kinds: frozenset[str]
) -> list[bytes]:
    """The fewest prefixes under which everything that is wanted is published."""
    if environment == "*":
        if topics:
            raise ConfigError(
                "topics of every environment cannot be asked for by prefix",
                hint="name the environment, or leave out topics and use flows and states",
            )
        return [b""]
    root = make_topic([environment or current_environment()])
    if topics:
        wanted = [root + parse_pattern(topic) for topic in topics]
    elif flows and len(flows) * len(kinds) <= MAX_PREFIXES:
        wanted = [root + make_topic([kind, flow]) for kind in kinds for flow in flows]
    elif kinds != frozenset(kind.value for kind in RUN_KINDS):
        wanted = [root + make_topic([kind]) for kind in kinds]
    else:
        wanted = [root]
    for prefix in wanted:
        if level_of(prefix) > PARTS:
            raise ConfigError(f"the topic {prefix.decode()!r} has more than four parts")
    prefixes = without_overlaps(wanted)
    if len(prefixes) > MAX_PREFIXES:
        raise ConfigError(f"a subscription has at most {MAX_PREFIXES} topics, not {len(prefixes)}")
    return prefixes
