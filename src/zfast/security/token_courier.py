"""Brings a process's bearer token to a server, and a new one before it ends.

It does so on a connection of its own, under the same key: so whoever uses the key need know nothing
of tokens but that it connects when its token was taken, and renewal waits for nobody's turn.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from zfast import _core
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import ConfigError, ProtocolError, TokenError, TransportError, ZfastError
from zfast.ip_family import connect
from zfast.security.audit import logger
from zfast.security.token_messages import TOKEN_KIND, Answer, read_answer

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A token is looked for anew in a quarter of the time that the last one has left, within these.
LOOK_LEAST_S, LOOK_MOST_S = 0.2, 60.0
#: What was not answered, or was refused for now, is said again.
AGAIN_S = 1.0
#: How often it looks whether anybody uses the key still.
IDLE_S = 1.0
RECONNECT_MS, RECONNECT_MAX_MS = 50, 1000


class TokenCourier:
    """Serves the sockets that a process connects to one endpoint, until the last is closed.

    Args:
        endpoint: Where tokens are taken.
        token: Gives the token; called on the courier's thread.
        guard: Prepares a socket to connect there, with the key that the token is for.
        judge: Given what is known of the courier's connection, makes the error of one that fails
            for good.

    Threads: any; it has one of its own.
    """

    def __init__(
        self,
        endpoint: str,
        token: Callable[[], str | None],
        guard: Callable[[zmq.Socket[bytes]], None],
        judge: Callable[[ConnectionMonitor], ZfastError | None],
    ) -> None:
        self._endpoint = endpoint
        self._token, self._guard = token, guard
        self._judge = judge
        self.pid = os.getpid()
        self.ended = False
        self._users: weakref.WeakSet[zmq.Socket[bytes]] = weakref.WeakSet()
        self._changed = threading.Condition()
        self._taken = False
        self._error: ZfastError | None = None
        self._reason = ""
        self._until_s = float("inf")
        self._asked = False
        self._stopping = False
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="zfast-courier", daemon=True)

    def serve(self, user: zmq.Socket[bytes]) -> bool:
        """Bring the token, once more if it was brought before: ``user`` is about to connect.

        Returns:
            False if the courier has ended: another one is needed.
        """
        with self._changed:
            if self.ended or self.pid != os.getpid():
                return False
            self._users.add(user)
            self._taken, self._error, self._asked = False, None, True
            if self._thread.ident is None:
                self._thread.start()
                # Before the context's own end, which was registered earlier.
                atexit.register(self.stop)
        self._wake()
        return True

    def taken(self, timeout_s: float = 0.0) -> bool:
        """Whether the token was taken since ``serve`` was called last; waits so long for it.

        Raises:
            TokenError: It is refused; the message says why.
            HandshakeError: The server refuses our key, or is not who we trust.
            ConfigError: The token cannot be read.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._taken or self._error is not None, timeout_s)
            if self._error is not None:
                raise self._error
            return self._taken

    @property
    def reason(self) -> str:
        """Why it was not taken yet, as far as the server has told."""
        return self._reason

    def stop(self) -> None:
        """End the thread."""
        if self.pid == os.getpid():
            self._stopping = True
            self._wake()
            self._thread.join()

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # it is awake, or has ended

    # ---- the courier's thread --------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._has_ended():
                with _Connection(self._endpoint, self._guard) as connection:
                    self._serve(connection)
        except (zmq.ZMQError, TransportError):
            pass  # the context ends
        except Exception as error:
            logger.exception("the token could not be brought to %s", self._endpoint)
            self._fail(ConfigError(f"the token could not be brought: {error}"))
        finally:
            with self._changed:
                self.ended = True
            atexit.unregister(self.stop)
            self._woken.close()
            self._waker.close()

    def _has_ended(self) -> bool:
        with self._changed:
            in_use = any(not user.closed for user in self._users)
            self.ended = self._stopping or not in_use
            return self.ended

    def _serve(self, connection: _Connection) -> None:
        """Until nobody needs it, or it was refused for good and is asked for anew."""
        brought, is_settled, due_s = "", False, 0.0
        while not self._has_ended():
            connection.wait(self._woken, min(due_s, time.monotonic() + IDLE_S))
            if self._asked and connection.news.refused:
                return
            if connection.news.read() or self._asked:
                self._asked, is_settled, due_s = False, False, 0.0
                self._look_at(connection)
            for answer in connection.answers():
                is_settled = not answer.for_now
                due_s = self._learn(answer)
            if not connection.news.connected:
                due_s = float("inf")  # its coming up is news
            if time.monotonic() < due_s:
                continue
            token = self._read()
            if token and (token != brought or not is_settled):
                connection.bring(token)
                brought, is_settled = token, False
            due_s = time.monotonic() + AGAIN_S
            if is_settled and self._taken:
                due_s = self._next_look()

    def _look_at(self, connection: _Connection) -> None:
        error = self._judge(connection.news)
        if error is not None:
            self._fail(error)
        elif not connection.news.connected:
            self._taken = False

    def _next_look(self) -> float:
        quarter_s = (self._until_s - time.monotonic()) / 4
        return time.monotonic() + min(max(quarter_s, LOOK_LEAST_S), LOOK_MOST_S)

    def _learn(self, answer: Answer) -> float:
        """What became of the token; when to look for one again, on the monotonic clock."""
        self._reason = answer.refusal
        if answer.refusal:
            if not answer.for_now:
                self._fail(TokenError(f"{self._endpoint} refused our token: {answer.refusal}"))
            return time.monotonic() + AGAIN_S
        self._until_s = time.monotonic() + (
            float("inf") if answer.left_s is None else answer.left_s
        )
        with self._changed:
            self._taken, self._error = True, None
            self._changed.notify_all()
        return self._next_look()

    def _read(self) -> str | None:
        try:
            return self._token() or None
        except ZfastError as error:
            if self._taken:
                logger.warning("the token cannot be renewed: %s", error)
            else:
                self._fail(error)
            return None

    def _fail(self, error: ZfastError) -> None:
        with self._changed:
            self._error = error
            self._taken = False
            self._changed.notify_all()


class _Connection:
    """The courier's socket, and in ``news`` what is known of its connection."""

    def __init__(self, endpoint: str, guard: Callable[[zmq.Socket[bytes]], None]) -> None:
        self._socket = process_context().socket(zmq.DEALER)
        self._socket.linger = 0
        guard(self._socket)
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
        self.news = ConnectionMonitor(self._socket)
        connect(self._socket, endpoint)

    def wait(self, woken: socket.socket, until_s: float) -> None:
        poller = zmq.Poller()
        for readable in (self._socket, self.news.socket, woken):
            poller.register(readable, zmq.POLLIN)
        poller.poll(max(0, int((until_s - time.monotonic()) * 1000) + 1))
        try:
            woken.recv(4096)
        except BlockingIOError:
            pass

    def bring(self, token: str) -> None:
        _core.send_message(self._socket, TOKEN_KIND, token.encode("ascii", "replace"))

    def answers(self) -> Iterable[Answer]:
        while True:
            try:
                message = _core.recv(self._socket)
                if message is None:
                    return
                yield read_answer(message)
            except ProtocolError as error:
                logger.warning("an answer to our token cannot be read: %s", error)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.news.close()
        self._socket.close(linger=0)
