"""What is broadcast, of which runs, and which way it goes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from zfast.errors import ConfigError
from zfast.events.event import Kind
from zfast.events.subscription import chosen_endpoint

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


class Route(NamedTuple):
    """Which way events go: options that share one share a publisher."""

    relay: str | None
    key: str
    insecure: bool


class BroadcastOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is broadcast. An empty tuple is everything.

    Attributes:
        environment: The first part of the topic; None is ``ZFAST_ENVIRONMENT``, else ``default``.
        flows: Names of flows.
        kinds: ``task-run``, ``flow-run``, ``worker``.
        states: Names or types of states, whatever their case.
        endpoint: A relay to publish through as well; None is ``ZFAST_EVENTS_ENDPOINT``, if set.
        key: Which key pair of the key folder is shown to a relay on tcp.
        insecure: Allow a relay on tcp of the loopback interface that nothing guards.
        inherited: Set for child processes, where what cannot be opened is logged and fails nothing.
    """

    environment: str | None = None
    flows: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    endpoint: str | None = None
    key: str = "client"
    insecure: bool = False
    inherited: bool = False

    def __post_init__(self) -> None:
        known = {kind.value for kind in Kind}
        unknown = set(self.kinds) - known
        if unknown:
            raise ConfigError(
                f"{sorted(unknown)} are no kinds of events", hint=f"known: {sorted(known)}"
            )

    def matches_worker(self, flow_name: str) -> bool:
        """Whether it is to be told how a worker of a flow fares."""
        return (not self.flows or flow_name in self.flows) and (
            Kind.WORKER.value in self.kinds or not (self.kinds or self.states)
        )

    def matches(self, kind: str, flow_name: str, state: State[Any]) -> bool:
        """Whether a state is to be broadcast."""
        return (
            (not self.flows or flow_name in self.flows)
            and (not self.kinds or kind in self.kinds)
            and (
                not self.states
                or (state.name or "").casefold() in self._states
                or state.type.value.casefold() in self._states
            )
        )

    @property
    def route(self) -> Route:
        """Which way events go."""
        return Route(chosen_endpoint(self.endpoint), self.key, self.insecure)

    @property
    def _states(self) -> frozenset[str]:
        return _casefolded(self.states)


@lru_cache
def _casefolded(states: tuple[str, ...]) -> frozenset[str]:
    return frozenset(state.casefold() for state in states)
