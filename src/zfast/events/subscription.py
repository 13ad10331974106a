"""Events as they happen: a sync and an async iterator over all publishers that can be reached."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import zmq
import zmq.asyncio

from zfast.errors import ChannelClosedError, ConfigError, RecvTimeoutError
from zfast.events.arrivals import Arrivals
from zfast.events.event import Event, Kind, PublisherJoined, PublisherLeft, StateEvent
from zfast.events.feed import Feed
from zfast.events.messages import MAX_PREFIXES
from zfast.events.runtime_folder import user_folder
from zfast.events.sockets import Guard
from zfast.events.topics import PARTS, level_of, make_topic, parse_pattern, without_overlaps

if TYPE_CHECKING:
    from typing_extensions import Self

ENVIRONMENT_VARIABLE = "ZFAST_ENVIRONMENT"
ENDPOINT_VARIABLE = "ZFAST_EVENTS_ENDPOINT"


class Subscription:
    """Receives events. An iterator, an async iterator, and a context manager of both kinds.

    At first come the current states of runs, marked ``replayed``; then every event as it happens.
    What is missed is asked for again, and what cannot be had any more is told by a ``Gap``.

    Threads: one at a time, but for ``close``, which any may call.

    Args:
        endpoint: A relay's. None is that of ``ZFAST_EVENTS_ENDPOINT``, else every publisher of
            this user on this host, whenever it starts.
        environment: Which one; None is that of ``ZFAST_ENVIRONMENT``, else ``default``. ``"*"`` is
            every one.
        topics: ``task-run``, ``task-run/my-flow`` or ``flow-run/my-flow/Failed``; any of them.
        flows: Names of flows; any of them.
        tasks: Names of tasks; any of them. Flow runs' events do not match.
        kinds: ``task-run``, ``flow-run``; both if none is given.
        states: Names or types of states, such as ``Retrying`` or ``FAILED``, whatever their case.
        runs: Ids of task runs or flow runs; a flow run's task runs match it too.
        snapshot: Deliver the current states of runs at first.
        membership: Also deliver ``PublisherJoined`` and ``PublisherLeft``.
        folder: Where publishers are found, instead of the user's folder.
        guard: Security for tcp.
        insecure: Allow tcp of the loopback interface that nothing guards.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        environment: str | None = None,
        topics: Sequence[str] = (),
        flows: Sequence[str] = (),
        tasks: Sequence[str] = (),
        kinds: Sequence[str] = (),
        states: Sequence[str] = (),
        runs: Sequence[str] = (),
        snapshot: bool = True,
        membership: bool = False,
        folder: Path | None = None,
        guard: Guard | None = None,
        insecure: bool = False,
    ) -> None:
        for name, value in (
            ("topics", topics), ("flows", flows), ("tasks", tasks), ("kinds", kinds),
            ("states", states), ("runs", runs),
        ):  # fmt: skip
            if isinstance(value, str):
                raise ConfigError(f"{name} is a list of strings, not the string {value!r}")
        self._flows, self._tasks = frozenset(flows), frozenset(tasks)
        self._states = frozenset(state.casefold() for state in states)
        self._runs = frozenset(str(run) for run in runs)
        self._kinds = _check_kinds(kinds, only_tasks=bool(tasks))
        self._membership = membership
        self._snapshot = snapshot
        self._guard, self._insecure = guard, insecure
        self._prefixes = _prefixes(environment, topics, self._flows, self._kinds)
        self._ready: deque[Event] = deque()
        self._feeds: dict[str, Feed] = {}
        self._left: set[str] = set()
        self._arrivals: Arrivals | None = None
        self._closed = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        endpoint = endpoint or os.environ.get(ENDPOINT_VARIABLE)
        try:
            if endpoint:
                self._follow(endpoint, is_new=False, is_local=False)
            else:
                self._arrivals = Arrivals(folder or user_folder())
                for url in self._arrivals.present():
                    self._follow(url, is_new=False, is_local=True)
        except BaseException:
            self._closed = True
            self._release()
            raise

    def recv(self, timeout: float | None = None) -> Event:
        """The next event.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            RecvTimeoutError: None came in time.
            ChannelClosedError: The subscription was closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._ready:
                return self._ready.popleft()
            self._check_open()
            now = time.monotonic()
            if deadline is not None and now >= deadline and not self._poll(0):
                raise RecvTimeoutError(f"no event came in {timeout:g} s")
            self._poll(self._wait_ms(now, deadline))

    async def arecv(self, timeout: float | None = None) -> Event:
        """The next event, for asyncio. See ``recv``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._ready:
                return self._ready.popleft()
            self._check_open()
            now = time.monotonic()
            if deadline is not None and now >= deadline and not self._poll(0):
                raise RecvTimeoutError(f"no event came in {timeout:g} s")
            if self._ready:
                continue
            poller = zmq.asyncio.Poller()
            for source in self._sources():
                poller.register(source, zmq.POLLIN)
            await poller.poll(self._wait_ms(now, deadline))
            self._poll(0)

    def wait_joined(self, timeout: float = 5.0) -> None:
        """Wait until events of every source that is known come as they happen.

        Raises:
            RecvTimeoutError: One does not answer in time.
            ChannelClosedError: The subscription was closed.
        """
        deadline = time.monotonic() + timeout
        while not all(feed.is_live for feed in self._feeds.values()):
            self._check_open()
            now = time.monotonic()
            if now >= deadline:
                slow = [url for url, feed in self._feeds.items() if not feed.is_live]
                raise RecvTimeoutError(
                    f"nobody answers at {', '.join(slow)}",
                    hint="is 'zfast relay' running there?",
                )
            self._poll(self._wait_ms(now, deadline))

    def close(self) -> None:
        """End the subscription: iterators stop. A second call does nothing. Threads: any."""
        if self._closed:
            return
        self._closed = True
        self._wake.send(b"x")

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            return self.recv()
        except ChannelClosedError:
            self._release()
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.arecv()
        except ChannelClosedError:
            self._release()
            raise StopAsyncIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
        self._release()

    # ---- inside ------------------------------------------------------------------------

    def _poll(self, timeout_ms: int) -> bool:
        """Wait for news so long and take it; whether an event is ready."""
        poller = zmq.Poller()
        for source in self._sources():
            poller.register(source, zmq.POLLIN)
        readable = {source for source, _ in poller.poll(timeout_ms)}
        if self._arrivals is not None and self._arrivals.fileno() in readable:
            for url in self._arrivals.take():
                self._follow(url, is_new=True, is_local=True)
        now = time.monotonic()
        for url, feed in list(self._feeds.items()):
            if feed.control in readable or feed.events in readable:
                self._deliver(feed.read())
            self._deliver(feed.tick(now))
            if feed.is_done:
                self._deliver(feed.leave())
                feed.close()
                del self._feeds[url]
        return bool(self._ready)

    def _sources(self) -> list[zmq.Socket[bytes] | int]:
        sources: list[zmq.Socket[bytes] | int] = [self._woken.fileno()]
        if self._arrivals is not None:
            sources.append(self._arrivals.fileno())
        for feed in self._feeds.values():
            sources.append(feed.control)
            if feed.events is not None:
                sources.append(feed.events)
        return sources

    def _wait_ms(self, now: float, deadline: float | None) -> int:
        due = min((feed.due_s for feed in self._feeds.values()), default=now + 60.0)
        if deadline is not None:
            due = min(due, deadline)
        return max(0, min(60_000, int((due - now) * 1000) + 1))

    def _follow(self, url: str, *, is_new: bool, is_local: bool) -> None:
        if url in self._feeds:
            return
        self._feeds[url] = Feed(
            url,
            self._prefixes,
            is_new=is_new,
            truth=self._snapshot,
            is_local=is_local,
            listener=self._arrivals.name if self._arrivals is not None else "",
            guard=self._guard,
            insecure=self._insecure,
        )

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, StateEvent):
                if self._matches(event):
                    self._ready.append(event)
            elif self._membership or not isinstance(event, PublisherJoined | PublisherLeft):
                self._ready.append(event)

    def _matches(self, event: StateEvent) -> bool:
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

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosedError("the subscription was closed")

    def _release(self) -> None:
        for feed in self._feeds.values():
            feed.close()
        self._feeds.clear()
        if self._arrivals is not None:
            self._arrivals.close()
            self._arrivals = None
        self._ready.clear()
        self._woken.close()
        self._wake.close()


def subscribe(endpoint: str | None = None, **filters: object) -> Subscription:
    """Subscribe to states of runs. See ``Subscription`` for the arguments.

    Example:
        >>> for event in subscribe(flows=["etl"], states=["FAILED"]):  # doctest: +SKIP
        ...     print(event.run_name)
    """
    return Subscription(endpoint, **filters)  # type: ignore[arg-type]


def current_environment() -> str:
    """The environment of this process: ``ZFAST_ENVIRONMENT``, else ``default``."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or "default"


def _check_kinds(kinds: Sequence[str], *, only_tasks: bool) -> frozenset[str]:
    known = frozenset(kind.value for kind in Kind)
    chosen = frozenset(kinds) or known
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
    elif len(kinds) < len(Kind):
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
