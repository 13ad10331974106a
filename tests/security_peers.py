"""What the tests of the security have in common: a guarded ROUTER that serves, and its peers."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from zfast.context import process_context
from zfast.errors import AccessDeniedError
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair, PublicKey
from zfast.security.door import Door
from zfast.security.roles import Verb
from zfast.security.routing_ids import RoutingIds
from zfast.security.server_security import ServerSecurity

ALL_VERBS = frozenset(Verb)


class Service:
    """A guarded ROUTER that answers ``[verb]`` with ``[b"yes", subject]`` or ``[b"no"]``.

    ``[b"token", token]`` presents a token. Runs on a thread of its own, as a hub would.
    """

    def __init__(
        self, security: ServerSecurity, *, url: str = "tcp://127.0.0.1:*", **guard: object
    ) -> None:
        self.socket = process_context().socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.rcvtimeo = 20
        guard.setdefault("verbs", ALL_VERBS)
        self.door: Door = security.guard(self.socket, **guard)
        self.endpoint = self.door.bind(url)
        self.port = int(self.endpoint.rpartition(":")[2])
        self.routing_ids = RoutingIds()
        self.heard: list[bytes] = []
        self._answers: list[list[bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.door.maintain()
            while self._answers:
                self.socket.send_multipart(self._answers.pop(0))
            with contextlib.suppress(zmq.Again):
                self._answer(self.socket.recv_multipart(copy=False))
        self.door.close()
        self.socket.close(0)

    def _answer(self, frames: list[zmq.Frame]) -> None:
        routing_id, user_id = frames[0].bytes, str(frames[0].get("User-Id"))
        what = frames[1].bytes
        self.heard.append(what)
        if what == b"token":

            def answer(future):
                error = future.exception()
                told = b"no" if error else b"yes"
                detail = str(error).encode() if error else future.result().role.value.encode()
                self._answers.append([routing_id, told, detail])

            self.door.present(user_id, frames[2].bytes.decode()).add_done_callback(answer)
            return
        try:
            self.routing_ids.check(routing_id, user_id)
            fd = frames[0].get(zmq.SRCFD)
            identity = self.door.authorise(user_id, Verb(what.decode()), fd=fd)
            reply = [b"yes", identity.subject.encode()]
        except (AccessDeniedError, ValueError):
            reply = [b"no"]
        self.socket.send_multipart([routing_id, *reply])


@contextlib.contextmanager
def serving(security: ServerSecurity, **guard: Any) -> Iterator[Service]:
    service = Service(security, **guard)
    try:
        yield service
    finally:
        service.close()
        security.close()


class Peer:
    """A DEALER, or another ``kind``, with a key, and its view of the connection."""

    def __init__(
        self,
        endpoint: str,
        pair: KeyPair,
        server: PublicKey,
        *,
        routing_id: bytes | None = None,
        kind: int = zmq.DEALER,
        **options: object,
    ) -> None:
        self.socket = process_context().socket(kind)
        self.socket.linger = 0
        if routing_id is not None:
            self.socket.routing_id = routing_id
        self.monitor = self.socket.get_monitor_socket()
        ClientSecurity(pair, [server])._set_options(self.socket, server)
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(endpoint)

    def ask(self, *frames: bytes, timeout_s: float = 10.0) -> list[bytes] | None:
        """The answer, or None if none comes."""
        self.socket.send_multipart(frames)
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        return self.socket.recv_multipart()

    def wait_for(self, *events: int, timeout_s: float = 15.0) -> int:
        """The first of these events, or 0."""
        deadline_s = time.monotonic() + timeout_s
        while self.monitor.poll(max(0, int((deadline_s - time.monotonic()) * 1000))):
            event = recv_monitor_message(self.monitor)["event"]
            if event in events:
                return int(event)
        return 0

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Records(logging.Handler):
    """The audit records of a while; ``wait_for`` one of them."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.records.append(record)
            self._changed.notify_all()

    def wait_for(self, event: str, reason: str = "", timeout_s: float = 15.0) -> dict[str, object]:
        with self._changed:
            found: list[dict[str, object]] = []

            def is_there() -> bool:
                found[:] = [
                    fields
                    for fields in (getattr(record, "zfast", {}) for record in self.records)
                    if fields.get("event") == event and fields.get("reason", "") == reason
                ]
                return bool(found)

            assert self._changed.wait_for(is_there, timeout_s), (event, reason, self.texts)
            return found[0]

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def __enter__(self) -> Records:
        logger = logging.getLogger("zfast.security")
        self._level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("zfast.security")
        logger.removeHandler(self)
        logger.setLevel(self._level)


def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# ---- strangers ------------------------------------------------------------------------------

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01CURVE" + b"\0" * 15 + b"\0" + b"\0" * 31
HELLO = b"".join(
    [b"\x04\xc8\x05HELLO\x01\x00", b"\0" * 72, os.urandom(32), b"\0" * 7, b"\1", os.urandom(80)]
)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, taken out or put in; and lengths that are none."""
    mutated = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        kind, at = rng.randrange(4), rng.randrange(len(mutated))
        if kind == 0:
            mutated[at] = rng.randrange(256)
        elif kind == 1:
            del mutated[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            mutated[at:at] = rng.randbytes(rng.randrange(1, 40))
        else:
            mutated[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, struct.pack(">Q", 1 << 40)])
        if not mutated:
            mutated += b"\0"
    return bytes(mutated)


_ECHO_SERVER = """
import sys
from zfast import Channel
from zfast.errors import RecvTimeoutError, ZfastError
from zfast.security.curve_keys import PublicKey
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity
secret, public = sys.argv[1:]
security = ServerSecurity.from_keys(secret, [(PublicKey(public, "dev"), Role.DEVELOPER)])
with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
    print(rx.endpoint, flush=True)
    first = None
    while True:
        try:
            value = rx.recv(timeout=3600)
            first = first or rx.peers[0]
            if value == "question":
                rx.send("answer", to=first)
        except ZfastError as error:
            print(error, file=sys.stderr)
"""


@contextlib.contextmanager
def echo_server(server: KeyPair, client: PublicKey) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, whose memory is its own too: it and its endpoint.

    Its first peer may ask a "question"; from all others it takes what they say.
    """
    secret = server.secret.reveal().decode()
    with subprocess.Popen(
        [sys.executable, "-c", _ECHO_SERVER, secret, client.z85], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
