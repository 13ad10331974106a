"""The hub's side of other hosts: their sessions, their workers, and when they count as lost."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator

import msgspec
import zmq

from zfast import _core
from zfast.addresses import as_told_to_others
from zfast.errors import AccessDeniedError, ProtocolError
from zfast.runner.control import BURST, ControlMessage
from zfast.runner.policy import Policy
from zfast.runner.protocol import HUB_MESSAGES, PROTOCOL_VERSION, Ready
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_protocol import (
    REMOTE_MESSAGES,
    AskStatus,
    Beat,
    Died,
    Farewell,
    Fetched,
    Join,
    Quit,
    Refuse,
    Relayed,
    Resume,
    Resumed,
    Retire,
    Serving,
    Started,
    Status,
    Unfetched,
    Welcome,
)
from zfast.runner.remote_socket import RemoteEndpoint, RemoteSocket
from zfast.runner.remote_worker import RemoteHost, RemoteWorker
from zfast.runner.vitals import LOOKS_PER_LEASE
from zfast.security.roles import Verb

logger = logging.getLogger("zfast.runner")

#: Foremen are looked after, and hear of the hub, so often at least.
LOOK_EVERY_S = 5.0
#: Hosts whose key was revoked, or whose token has ended, are found so soon.
REVIEW_EVERY_S = 0.25
#: When nobody has joined for so long though there is work, the log says so.
LONELY_S = 10.0

_ASK_STATUS = REMOTE_MESSAGES.kinds[AskStatus]

Arrival = tuple[RemoteWorker, ControlMessage, list[memoryview]]


class RemoteHosts:
    """Foremen of other hosts, and the workers behind them. Threads: made in one; then the hub's.

    Args:
        remote: Where they may join.
        policy: Its lease holds for hosts too.
        data: Told of hosts, and what they say about data.
        welcome: What each is told first; its session id is filled in.
        wake: Called on another thread when there is something to do.
        describe: The hub's status as JSON.

    Raises:
        ConfigError, TransportError: As ``RemoteSocket``.
    """

    def __init__(
        self,
        remote: RemoteEndpoint,
        policy: Policy,
        data: RemoteData,
        welcome: Welcome,
        poller: zmq.Poller,
        wake: Callable[[], None],
        describe: Callable[[], bytes],
    ) -> None:
        self._data = data
        self._welcome = welcome
        self._initializer = policy.initializer
        self._describe = describe
        self._lease_s = policy.lease_s
        self._look_every_s = policy.lease_s / LOOKS_PER_LEASE
        self._next_look = time.monotonic() + self._look_every_s
        self._next_beat = time.monotonic()
        self._next_review = time.monotonic()
        self._lonely_since: float | None = None
        self._hosts: dict[bytes, RemoteHost] = {}
        self._routes: dict[bytes, RemoteHost] = {}
        self._dead: list[RemoteWorker] = []
        self._socket = RemoteSocket(remote, poller, wake)
        self.endpoint = self._socket.endpoint

    def __iter__(self) -> Iterator[RemoteWorker]:
        for host in list(self._hosts.values()):
            yield from list(host.workers.values())

    @property
    def hosts(self) -> list[RemoteHost]:
        """Those that have joined and are not lost."""
        return list(self._hosts.values())

    @property
    def next_turn(self) -> float:
        """When ``turn`` must be called at the latest, by the monotonic clock."""
        if self._dead:  # lost in the last turn
            return 0.0
        review = self._next_review if self._hosts else float("inf")
        return min(self._next_look, self._next_beat, review)

    # ---- what the hub calls each turn -------------------------------------------------------

    def receive(self) -> Iterator[Arrival]:
        """What workers said; some of it, others have their turn too."""
        self._socket.maintain()
        for _ in range(BURST):
            try:
                received = self._socket.receive()
                if received is None:
                    return
                arrival = self._take(*received)
            except ProtocolError as error:
                logger.warning("message dropped: %s", error)
                continue
            if arrival is not None:
                yield arrival

    def take_dead(self) -> list[RemoteWorker]:
        """The workers that have died, or whose host was lost, since the last call."""
        dead, self._dead = self._dead, []
        return dead

    def turn(self, *, waiting: bool) -> None:
        """Look after hosts, and send what there is to send.

        Args:
            waiting: There is a job that no worker has.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self._look_every_s
            for host in self.hosts:
                host.silent_looks += 1
                if host.is_overdue:
                    self._lose(host, f"its host {host.name} was silent for {self._lease_s:g} s")
        if now >= self._next_review:
            self._next_review = now + REVIEW_EVERY_S
            for host in self.hosts:
                if not self._socket.may(host.user_id, Verb.CLAIM):
                    self._lose(host, f"its host {host.name} may not work here any more")
        if now >= self._next_beat:
            self._next_beat = now + min(self._look_every_s / 2, LOOK_EVERY_S)
            for host in self.hosts:
                host.session.told = -1
        self._flush()
        self._complain(now, waiting)

    def close(self) -> None:
        """Say farewell to all, and close."""
        self._flush()
        for host in self.hosts:
            self._say(host.route, Farewell())
        self._socket.close()

    # ---- in ---------------------------------------------------------------------------------

    def _take(self, route: bytes, user_id: str, received: _core.Message) -> Arrival | None:
        asks = received.kind == _ASK_STATUS
        try:
            self._socket.authorise(user_id, Verb.SUBSCRIBE if asks else Verb.CLAIM)
        except AccessDeniedError:
            self._say(route, Refuse("this key may not do that here", final=True))
            return None
        host = self._routes.get(route)
        if asks:
            self._say(route, Status(), [memoryview(self._describe())])
            return None
        if received.request_id == 0:
            message = REMOTE_MESSAGES.decode(received.kind, received.body)
            self._take_unnumbered(host, route, user_id, message)
            return None
        if host is None:
            return None  # of a connection that was not resumed: it will come again
        host.silent_looks = 0
        try:
            whole = host.session.receive(received)
            return self._take_numbered(host, *whole) if whole is not None else None
        except ProtocolError as error:
            self._lose(host, f"its host {host.name} made no sense: {error.message}")
            raise

    def _take_unnumbered(
        self, host: RemoteHost | None, route: bytes, user_id: str, message: ControlMessage
    ) -> None:
        if isinstance(message, Join):
            self._join(route, user_id, message)
        elif isinstance(message, Resume):
            self._resume(route, user_id, message)
        elif isinstance(message, Beat):
            if host is None:
                self._say(route, Refuse("this hub does not know you", final=False))
                return
            host.silent_looks = 0
            host.session.acknowledge(message.received)
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from another host")

    def _take_numbered(
        self, host: RemoteHost, message: ControlMessage, buffers: list[memoryview]
    ) -> Arrival | None:
        if isinstance(message, Started):
            name = host.session_id + message.worker
            host.workers[message.worker] = RemoteWorker(
                name, time.monotonic(), host, message.worker, message.pid
            )
        elif isinstance(message, Relayed):
            worker = host.workers.get(message.worker)
            if worker is None:
                raise ProtocolError(f"a message of {message.worker!r}, not a worker")
            inner = HUB_MESSAGES.decode(message.kind, message.body)
            if isinstance(inner, Ready):
                worker.now_ready()
            return worker, inner, buffers
        elif isinstance(message, Died):
            worker = host.workers.pop(message.worker, None)
            if worker is not None:
                worker.last_begun, worker.cause = message.begun, message.cause
                worker.last_words = message.words
                self._dead.append(worker)
        elif isinstance(message, Fetched):
            self._data.arrive(host, message, buffers)
        elif isinstance(message, Serving):
            self._data.serve(host, message, guarded=self._socket.is_guarded)
        elif isinstance(message, Unfetched):
            self._data.miss(host, message)
        elif isinstance(message, Retire):
            self._data.retire(host)
        elif isinstance(message, Quit):
            self._lose(host, f"its host {host.name} left: {message.reason}")
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from {host.name}")
        return None

    def _join(self, route: bytes, user_id: str, join: Join) -> None:
        if join.protocol_version != PROTOCOL_VERSION:
            reason = (
                f"the hub's zfast is {self._welcome.versions.get('zfast')} and speaks protocol "
                f"{PROTOCOL_VERSION}, yours {join.protocol_version}: install the same on both"
            )
            self._say(route, Refuse(reason, final=True))
            return
        for host in self.hosts:
            if host.foreman_id == join.foreman_id and host.user_id == user_id:
                self._lose(host, f"its host {host.name} began anew")
        session_id = secrets.token_bytes(16)
        name = f"{join.host[:64]}:{join.pid}"
        host = RemoteHost(session_id, join.foreman_id, name, user_id, route)
        self._hosts[session_id] = self._routes[route] = host
        self._data.join(host)
        welcome = msgspec.structs.replace(self._welcome, session_id=session_id)
        host.session.post(welcome, [self._initializer] if self._initializer else [])
        logger.info("host %s has joined", name)

    def _resume(self, route: bytes, user_id: str, resume: Resume) -> None:
        host = self._hosts.get(resume.session_id)
        if host is None or host.user_id != user_id:
            self._say(route, Refuse("the session is over", final=False))
            return
        if host.route is not None:
            self._routes.pop(host.route, None)
        host.route, host.silent_looks = route, 0
        self._routes[route] = host
        host.session.resume(resume.received)
        self._say(route, Resumed(host.session.received))
        logger.info("host %s is back", host.name)

    def _lose(self, host: RemoteHost, cause: str) -> None:
        """Its workers are dead to us; whatever it still says does not count."""
        self._hosts.pop(host.session_id, None)
        if host.route is not None:
            self._routes.pop(host.route, None)
        for worker in host.workers.values():
            worker.cause = cause
            self._dead.append(worker)
        host.workers.clear()
        self._data.lose(host, cause)
        is_expected = not host.is_overdue and self._socket.may(host.user_id, Verb.CLAIM)
        logger.log(logging.INFO if is_expected else logging.WARNING, "%s", cause)

    # ---- out --------------------------------------------------------------------------------

    def _say(
        self, route: bytes | None, message: ControlMessage, buffers: list[memoryview] | None = None
    ) -> bool:
        kind, body = REMOTE_MESSAGES.encode(message)
        return route is not None and self._socket.send(route, kind, body, buffers or [])

    def _flush(self) -> None:
        self._data.flush()
        for host in self.hosts:
            session = host.session
            if session.told != session.received and self._say(host.route, Beat(session.received)):
                session.told = session.received
            while host.route is not None and (message := session.next()) is not None:
                sent = self._socket.send(
                    host.route, message.kind, message.body, message.buffers, message.number
                )
                if not sent:  # it is kept, and goes out when the host is back
                    self._routes.pop(host.route, None)
                    host.route = None

    def _complain(self, now: float, waiting: bool) -> None:
        if not waiting or self._hosts:
            self._lonely_since = None
        elif self._lonely_since is None:
            self._lonely_since = now
        elif now - self._lonely_since >= LONELY_S:
            self._lonely_since = float("inf")
            logger.warning(
                "tasks wait, and no host has joined: start workers with 'zfast worker %s'",
                as_told_to_others(self.endpoint),
            )
