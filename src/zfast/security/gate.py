"""The process's one ZAP handler: a thread that asks the doors, and outlives what goes wrong.

One request at a time, from tables in memory: nothing here waits for a disk or a network, since each
handshake of the process waits meanwhile. Whatever fails, the peer in question is refused. When the
whole turn fails, the handler is made anew; until then libzmq finds none and refuses everyone,
because every guarded socket sets a ZAP domain and enforces it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import zmq

from zfast.context import process_context
from zfast.errors import ConfigError, ProtocolError, TransportError
from zfast.security import zap
from zfast.security.audit import logger, record

#: How long the handler may take to answer the self-test.
SELF_TEST_S = 2.0
#: How often it is asked in that time: a handler that is made anew loses what it was asked.
SELF_TEST_TRIES = 8
#: How long a handler that failed is gone.
RESTART_S = 0.05
#: Requests answered before the doors are looked at again.
_MAX_TURN = 64


class Guard(Protocol):
    """What the gate asks on its thread, see ``zfast.security.doorkeeper.Doorkeeper``."""

    @property
    def domain(self) -> str:
        """The ZAP domain of its socket; the name it is found by."""

    @property
    def monitor(self) -> zmq.Socket[bytes]:
        """Receives libzmq's events of the guarded socket."""

    @property
    def next_review_s(self) -> float:
        """When to review its peers, on the monotonic clock."""

    def judge(self, request: zap.Request) -> list[bytes]:
        """The reply to one handshake."""

    def read_monitor(self) -> None:
        """Take the news."""

    def review(self) -> None:
        """Cut whoever may no longer be there."""


class Gate:
    """The handler of one context. Threads: any, unless it is said otherwise."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.context = context
        self.pid = os.getpid()
        self._guards: dict[str, Guard] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._waker_fd, False)
        self._stopping = False
        self._bound = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="zfast-gate", daemon=True)
        self._thread.start()
        # Before the context's own end, which was registered earlier.
        atexit.register(self.stop)

    @property
    def alive(self) -> bool:
        """Whether it can still serve its context."""
        return self._thread.is_alive() and not self._stopping and not self.context.closed

    def add(self, guard: Guard) -> None:
        """Let a door be asked, and prove that it is before its socket is bound.

        Raises:
            ConfigError: Somebody else's ZAP handler serves the context.
            TransportError: The handler does not answer, or lets a stranger in.
        """
        self._guards[guard.domain] = guard
        self.command(lambda: None)  # to poll its monitor too
        self._self_test(guard.domain)

    def remove(self, guard: Guard) -> None:
        """Ask a door no more; its monitor is closed by the gate."""

        def close() -> None:
            self._guards.pop(guard.domain, None)
            guard.monitor.close(linger=0)

        self.command(close)

    def command(self, command: Callable[[], None]) -> None:
        """Run something on the gate's thread; the doors are reviewed after it."""
        self._commands.append(command)
        # A full pipe wakes as well.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._waker_fd, b"\0")

    def stop(self) -> None:
        """End the thread. A fork's copy has none."""
        atexit.unregister(self.stop)
        if self.pid != os.getpid() or self._stopping:
            return
        self._stopping = True
        self.command(lambda: None)
        self._thread.join()
        os.close(self._wake_fd)
        os.close(self._waker_fd)

    # ---- any thread: the self-test -------------------------------------------------------

    def _self_test(self, domain: str) -> None:
        """Ask as libzmq would, as a stranger with CURVE and without."""
        if not self._bound.wait(SELF_TEST_S):
            raise self._not_served() from self._failure
        for credentials in ([b"CURVE", os.urandom(32)], [b"NULL"]):
            status = self._ask(domain.encode(), credentials)
            if status != b"400":
                raise TransportError(
                    f"the ZAP handler failed its self-test: it answered {status!r} to a stranger",
                    hint="nothing was bound; this is a bug, or another handler serves the context",
                )

    def _ask(self, domain: bytes, credentials: list[bytes]) -> bytes:
        with self.context.socket(zmq.DEALER) as asker:
            asker.linger = 0
            asker.connect(zap.ENDPOINT)
            address = zap.SELF_TEST_ADDRESS.encode()
            question = [b"", b"1.0", b"self-test", domain, address, b"", *credentials]
            for _ in range(SELF_TEST_TRIES):
                asker.send_multipart(question)
                if asker.poll(int(SELF_TEST_S * 1000 / SELF_TEST_TRIES)):
                    return asker.recv_multipart()[3]
            raise TransportError(
                f"the ZAP handler did not answer its self-test in {SELF_TEST_S} s",
                hint="nothing was bound; see the log of zfast.security",
            )

    def _not_served(self) -> ConfigError | TransportError:
        if isinstance(self._failure, zmq.ZMQError) and self._failure.errno == zmq.EADDRINUSE:
            return ConfigError(
                "another ZAP handler serves zfast's context",
                hint="give the other one a context of its own",
            )
        return TransportError("the ZAP handler does not start", detail=repr(self._failure))

    # ---- the gate's thread ---------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                with self._handler() as handler:
                    self._bound.set()
                    self._serve(handler)
            except zmq.ContextTerminated:
                return
            except Exception as error:
                self._bound.clear()
                self._failure = error
                record("gate restarted", level=logging.ERROR, reason=type(error).__name__)
                logger.exception("the ZAP handler failed; it is made anew")
                time.sleep(RESTART_S)
        for guard in self._guards.values():
            guard.monitor.close(linger=0)

    @contextlib.contextmanager
    def _handler(self) -> Iterator[zmq.Socket[bytes]]:
        # A ROUTER, not a REP, which would wait for the reply to a request that failed.
        handler = self.context.socket(zmq.ROUTER)
        try:
            handler.linger = 0
            handler.bind(zap.ENDPOINT)
            yield handler
        finally:
            handler.close(linger=0)

    def _serve(self, handler: zmq.Socket[bytes]) -> None:
        while not self._stopping:
            guards = list(self._guards.copy().values())
            poller = zmq.Poller()
            poller.register(handler, zmq.POLLIN)
            poller.register(self._wake_fd, zmq.POLLIN)
            for guard in guards:
                poller.register(guard.monitor, zmq.POLLIN)
            next_s = min((guard.next_review_s for guard in guards), default=float("inf"))
            left_s = max(0.0, next_s - time.monotonic())
            events = dict(poller.poll(None if next_s == float("inf") else int(left_s * 1000) + 1))
            # Who was accepted must be known before the verdict on him.
            for guard in guards:
                if guard.monitor in events:
                    self._read(guard)
            if handler in events:
                self._answer(handler)
            told = self._wake_fd in events
            if told:
                self._run_commands()
            self._review(all_of_them=told)

    def _read(self, guard: Guard) -> None:
        try:
            guard.read_monitor()
        except Exception:
            logger.exception("the monitor of %s could not be read", guard.domain)

    def _answer(self, handler: zmq.Socket[bytes]) -> None:
        for _ in range(_MAX_TURN):
            try:
                frames = handler.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                empty = frames.index(b"")
            except ValueError:
                continue  # no envelope: nobody to answer
            reply = self._judge(frames[empty + 1 :])
            handler.send_multipart([*frames[: empty + 1], *reply])

    def _judge(self, frames: list[bytes]) -> list[bytes]:
        request_id = frames[1] if len(frames) > 1 else b""
        try:
            request = zap.parse_request(frames)
            guard = self._guards.get(request.domain)
            if guard is not None:
                self._read(guard)  # what came since the poll
                return guard.judge(request)
            # Most likely of a socket that is being closed, whose port another may have in a moment.
            record("refused", reason="unknown domain", domain=request.domain)
            return zap.refuse(request_id, for_now=True)
        except ProtocolError as error:
            record("refused", reason="malformed ZAP request", detail=error.message)
        except Exception:
            record("refused", reason="error", level=logging.ERROR)
            logger.exception("a verdict failed; the peer is refused")
            return zap.refuse(request_id, for_now=True)
        return zap.refuse(request_id)

    def _run_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_fd, 4096):
                pass
        while self._commands:
            command = self._commands.popleft()
            command()

    def _review(self, *, all_of_them: bool) -> None:
        for guard in self._guards.copy().values():
            if all_of_them or time.monotonic() >= guard.next_review_s:
                try:
                    guard.review()
                except Exception:
                    logger.exception("the peers of %s could not be reviewed", guard.domain)
                    time.sleep(RESTART_S)  # it is tried again at once


_lock = threading.Lock()
_gate: Gate | None = None


def process_gate() -> Gate:
    """The gate of this process's context, made on first use; a forked child makes its own.

    Threads: any.
    """
    global _gate
    with _lock:
        context = process_context()
        if (
            _gate is None
            or _gate.pid != os.getpid()
            or not _gate.alive
            or _gate.context is not context
        ):
            _gate = Gate(context)
        return _gate


def _after_fork_in_child() -> None:
    global _lock, _gate
    _lock = threading.Lock()
    _gate = None


os.register_at_fork(after_in_child=_after_fork_in_child)
