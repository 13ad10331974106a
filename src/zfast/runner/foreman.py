"""A foreman: worker processes on this host for a hub on another one.

::

    hub ═ tcp, one session ═ foreman ═ ipc ═ workers

It starts them, watches them as a hub watches its own, tells of their deaths, and passes on what
they and the hub say. It runs no code of the user and never unpickles anything.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata

import zmq

from zfast.errors import ConfigError, ProtocolError, TransportError, WorkerStartError
from zfast.runner.crew import Crew
from zfast.runner.data_endpoint import DataEndpoint
from zfast.runner.hub_line import HubAddress, HubLine
from zfast.runner.remote_protocol import Quit, Welcome

#: A last message may take so long to arrive.
LAST_MESSAGE_S = 5.0


class Foreman:
    """Serves one hub after another, until ``leave``. Threads: ``run`` in one, ``leave`` any.

    Args:
        address: Where hubs are to be found.
        n_workers: Worker processes.
        say: Told, in a sentence, what a user may want to see.
        data_endpoint: Where other hosts may take data of this one; as ``DataEndpoint``.

    Raises:
        ConfigError: The data endpoint is malformed or unprotected.
    """

    def __init__(
        self,
        address: HubAddress,
        n_workers: int,
        say: Callable[[str], None],
        *,
        data_endpoint: str | None = None,
    ) -> None:
        self._address = address
        self._data_endpoint = DataEndpoint(address.url, address.is_guarded, data_endpoint)
        self._n_workers = n_workers
        self._say = say
        self._leaving = 0
        self._wake_receiver, self._wake_sender = os.pipe()
        os.set_blocking(self._wake_receiver, False)
        os.set_blocking(self._wake_sender, False)

    def leave(self) -> None:
        """Finish what runs, then end; at once, the second time. A signal's handler may call it."""
        self._leaving += 1
        try:
            os.write(self._wake_sender, b"\0")
        except BlockingIOError:
            pass

    def run(self) -> None:
        """Serve.

        Raises:
            HandshakeError: The hub refuses our key, or is not who we trust.
            ConfigError: This host's packages are not those of the hub.
            TransportError: The data endpoint cannot be bound.
            WorkerError: The hub refuses us, or workers cannot be started.
        """
        while not self._leaving:
            poller = zmq.Poller()
            poller.register(self._wake_receiver, zmq.POLLIN)
            line = HubLine(self._address, poller)
            linger_ms = 0
            try:
                self._say(f"waiting for a flow run at {self._address.url}")
                welcome, initializer = self._await_welcome(line, poller)
                if welcome is not None:
                    self._serve(line, poller, welcome, initializer)
                    linger_ms = 1000
            finally:
                line.close(linger_ms)

    def _await_welcome(
        self, line: HubLine, poller: zmq.Poller
    ) -> tuple[Welcome | None, bytes | None]:
        while not self._leaving and not line.over:
            self._wait(poller, line.next_turn)
            for message, buffers in line.receive():
                if isinstance(message, Welcome):
                    return message, bytes(buffers[0]) if buffers else None
                raise ProtocolError(f"{type(message).__name__} before Welcome from the hub")
            line.flush()
        return None, None

    def _serve(
        self, line: HubLine, poller: zmq.Poller, welcome: Welcome, initializer: bytes | None
    ) -> None:
        try:
            check_versions(welcome.versions)
            crew = Crew(
                line.session, poller, welcome, initializer, self._n_workers, self._data_endpoint
            )
        except (ConfigError, TransportError) as error:
            self._quit(line, poller, error.message)
            raise
        self._say(f"joined: {self._n_workers} worker processes serve {self._address.url}")
        reason = "it was told to"
        try:
            while not line.over and self._leaving < 2:
                self._wait(poller, min(line.next_turn, crew.next_turn))
                for message, buffers in line.receive():
                    crew.take(message, buffers)
                crew.turn(leaving=bool(self._leaving))
                line.flush()
                if crew.is_gone:
                    break
        except WorkerStartError as error:
            reason = error.message
            raise
        finally:
            crew.close()
            if not line.over:
                self._quit(line, poller, reason)
        if line.over:
            self._say("the flow run is over")

    def _quit(self, line: HubLine, poller: zmq.Poller, reason: str) -> None:
        """Say goodbye, and see that it arrives."""
        line.session.post(Quit(reason))
        until = time.monotonic() + LAST_MESSAGE_S
        while not line.session.all_arrived and not line.over and time.monotonic() < until:
            line.flush()
            self._wait(poller, min(until, line.next_turn))
            for _ in line.receive():
                pass

    def _wait(self, poller: zmq.Poller, until: float) -> None:
        poller.poll(int(max(0.0, until - time.monotonic()) * 1000) + 1)
        try:
            os.read(self._wake_receiver, 4096)
        except BlockingIOError:
            pass


def check_versions(versions: dict[str, str]) -> None:
    """See that this host has what the hub has.

    Raises:
        ConfigError: It does not; the message names the packages and versions.
    """
    wrong = []
    for package, theirs in versions.items():
        ours = installed_version(package)
        if ours != theirs:
            wrong.append(f"{package} {ours or 'is not installed'} here, {theirs} there")
    if wrong:
        raise ConfigError(
            f"this host differs from the flow's: {'; '.join(wrong)}",
            hint="install the same versions on both",
        )


def installed_version(package: str) -> str | None:
    """The version of a package; of ``python``, the minor one, which pickled code depends on."""
    if package == "python":
        return ".".join(platform.python_version_tuple()[:2])
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
