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

from zfast.errors import ChannelClosedError, RecvTimeoutError
from zfast.events.arrivals import Arrivals
from zfast.events.event import Event, PublisherJoined, PublisherLeft, StateEvent, WorkerEvent
from zfast.events.feed import Feed
from zfast.events.filters import Filters
from zfast.events.runtime_folder import user_folder
from zfast.events.sockets import client_security
from zfast.security.client_security import ClientSecurity

if TYPE_CHECKING:
    from typing_extensions import Self

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
        kinds: ``task-run``, ``flow-run``; both if none is given. ``worker``: how workers of
            ``ZfastTaskRunner`` fare, once a second, as ``WorkerEvent``.
        states: Names or types of states, such as ``Retrying`` or ``FAILED``, whatever their case.
        runs: Ids of task runs or flow runs; a flow run's task runs match it too.
        snapshot: Deliver the current states of runs at first.
        membership: Also deliver ``PublisherJoined`` and ``PublisherLeft``.
        folder: Where publishers are found, instead of the user's folder.
        security: Keys for tcp; None is this host's own, see docs/security.md.
        insecure: Allow tcp of the loopback interface that nothing guards.

    Raises:
        ConfigError: An argument is wrong, or tcp takes keys and there are none.
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
        security: ClientSecurity | None = None,
        insecure: bool = False,
    ) -> None:
        self._filters = Filters(
            environment=environment,
            topics=topics,
            flows=flows,
            tasks=tasks,
            kinds=kinds,
            states=states,
            runs=runs,
        )
        self._membership = membership
        self._snapshot = snapshot
        self._security, self._insecure = security, insecure
        self._ready: deque[Event] = deque()
        self._feeds: dict[str, Feed] = {}
        self._arrivals: Arrivals | None = None
        self._closed = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        endpoint = chosen_endpoint(endpoint)
        try:
            if endpoint:
                self._security = client_security(
                    endpoint,
                    security,
                    insecure=insecure,
                    environment=None if environment == "*" else environment,
                )
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
            HandshakeError: The relay refuses our key, has revoked it, or is not who we trust.
            AccessDeniedError: What was asked for is not ours to read.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self._take(timeout, deadline)) is None:
            self._poll(self._wait_ms(time.monotonic(), deadline))
        return event

    async def arecv(self, timeout: float | None = None) -> Event:
        """The next event, for asyncio. See ``recv``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self._take(timeout, deadline)) is None:
            poller = zmq.asyncio.Poller()
            for source in self._sources():
                poller.register(source, zmq.POLLIN)
            await poller.poll(self._wait_ms(time.monotonic(), deadline))
            self._poll(0)
        return event

    @property
    def is_joined(self) -> bool:
        """Whether events of every source that is known come as they happen."""
        return all(feed.is_live for feed in self._feeds.values())

    def wait_joined(self, timeout: float = 5.0) -> None:
        """Wait until events of every source that is known come as they happen.

        Raises:
            RecvTimeoutError: One does not answer in time.
            ChannelClosedError: The subscription was closed.
        """
        deadline = time.monotonic() + timeout
        while not self.is_joined:
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

    def _take(self, timeout: float | None, deadline: float | None) -> Event | None:
        """The next event if it is there; None while there is time to wait for it."""
        if not self._ready:
            self._check_open()
            if deadline is not None and time.monotonic() >= deadline and not self._poll(0):
                raise RecvTimeoutError(f"no event came in {timeout:g} s")
        return self._ready.popleft() if self._ready else None

    def _poll(self, timeout_ms: int) -> bool:
        """Wait for news so long and take it; whether an event is ready."""
        poller = zmq.Poller()
        for source in self._sources():
            poller.register(source, zmq.POLLIN)
        readable = {source for source, _ in poller.poll(timeout_ms)}
        now = time.monotonic()
        arrivals = self._arrivals
        if arrivals is not None and (arrivals.fileno() in readable or now >= arrivals.due_s):
            for url in arrivals.take():
                self._follow(url, is_new=True, is_local=True)
        for url, feed in list(self._feeds.items()):
            if not readable.isdisjoint(feed.sources):
                self._deliver(feed.read(readable))
            self._deliver(feed.tick(now))
            if feed.is_done:
                self._deliver(feed.leave())
                feed.close()
                del self._feeds[url]
                if arrivals is not None:
                    arrivals.end(url)
        return bool(self._ready)

    def _sources(self) -> list[zmq.Socket[bytes] | int]:
        sources: list[zmq.Socket[bytes] | int] = [self._woken.fileno()]
        if self._arrivals is not None:
            sources.append(self._arrivals.fileno())
        for feed in self._feeds.values():
            sources += feed.sources
        return sources

    def _wait_ms(self, now: float, deadline: float | None) -> int:
        due = min((feed.due_s for feed in self._feeds.values()), default=now + 60.0)
        if self._arrivals is not None:
            due = min(due, self._arrivals.due_s)
        if deadline is not None:
            due = min(due, deadline)
        return max(0, min(60_000, int((due - now) * 1000) + 1))

    def _follow(self, url: str, *, is_new: bool, is_local: bool) -> None:
        if url in self._feeds:
            return
        self._feeds[url] = Feed(
            url,
            self._filters.prefixes,
            is_new=is_new,
            truth=self._snapshot,
            is_local=is_local,
            listener=self._arrivals.name if self._arrivals is not None else "",
            security=self._security,
            insecure=self._insecure,
        )

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, StateEvent | WorkerEvent):
                if self._filters.match(event):
                    self._ready.append(event)
            elif self._membership or not isinstance(event, PublisherJoined | PublisherLeft):
                self._ready.append(event)

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosedError("the subscription was closed")
        for feed in self._feeds.values():
            if feed.refusal is not None:
                raise feed.refusal

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


def chosen_endpoint(endpoint: str | None) -> str | None:
    """The relay that is meant, by an argument or by ``ZFAST_EVENTS_ENDPOINT``; None is none."""
    return endpoint or os.environ.get(ENDPOINT_VARIABLE) or None


def subscribe(endpoint: str | None = None, **filters: object) -> Subscription:
    """Subscribe to states of runs. See ``Subscription`` for the arguments.

    Example:
        >>> for event in subscribe(flows=["etl"], states=["FAILED"]):  # doctest: +SKIP
        ...     print(event.run_name)
    """
    return Subscription(endpoint, **filters)  # type: ignore[arg-type]
