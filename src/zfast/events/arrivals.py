"""Publishers tell the subscribers that are there of themselves.

Datagrams in the user's folder: ``+ENDPOINT`` for a publisher that came, ``-ENDPOINT`` for one that
goes. A subscriber listens first and looks then; a publisher binds first and tells then: so neither
misses the other, whoever came first. The kernel keeps some ten datagrams for who is busy, and drops
what is beyond: so a subscriber also looks again, when it found many, and every few seconds.
"""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from zfast.addresses import parse_endpoint
from zfast.events.runtime_folder import PUBLISHER, SUBSCRIBER, own_folder
from zfast.owned_folder import owned_folders

_SOCKET_NAME = "arrivals.sock"
CONTROL_NAME = "control.sock"
EVENTS_NAME = "events.sock"
#: A subscriber looks again so often for publishers of which it was not told.
LOOK_S = 3.0
#: And when so many datagrams lay there: more may have found no room (``net.unix.max_dgram_qlen``).
MANY_DATAGRAMS = 8


def announce(endpoint: str, parent: Path, *, leaving: bool = False) -> set[str]:
    """Tell every subscriber of an endpoint; the names of those that were told."""
    told = set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        for folder in owned_folders(parent, SUBSCRIBER):
            try:
                sender.sendto(
                    ("-" if leaving else "+").encode() + endpoint.encode(),
                    str(folder / _SOCKET_NAME),
                )
            except OSError:
                continue  # dead, or stuck: its next look will find us
            told.add(folder.name)
    return told


class Arrivals:
    """A subscriber's ear: which publishers are there, and which come.

    Threads: one at a time.

    Attributes:
        name: Tells publishers who was told of them.
        due_s: When to ``take`` though there is no news, on the monotonic clock.

    Raises:
        ConfigError: The folder cannot be made, or its path is too long for a socket.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder = own_folder(SUBSCRIBER, parent)
        self.name = self._folder.path.name
        self.due_s = time.monotonic() + LOOK_S
        #: Those that have ended, and whose folders may still be there.
        self._ended: set[str] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(parse_endpoint(f"ipc://{self._folder.path / _SOCKET_NAME}").address)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._socket.fileno()

    def present(self) -> list[str]:
        """The endpoints of the publishers that are there now, dead ones' perhaps among them."""
        return [
            f"ipc://{folder / CONTROL_NAME}" for folder in owned_folders(self._parent, PUBLISHER)
        ]

    def take(self) -> list[str]:
        """The endpoints of those that came since the last call; at times of all that are there."""
        told: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(self._socket.recv(4096).decode(errors="replace"))
        came = [text[1:] for text in told if text.startswith("+ipc://")]
        now = time.monotonic()
        if len(told) >= MANY_DATAGRAMS or now >= self.due_s:
            self.due_s = now + LOOK_S
            present = self.present()
            self._ended &= set(present)
            came += present
        return [endpoint for endpoint in came if endpoint not in self._ended]

    def end(self, endpoint: str) -> None:
        """A publisher has ended: it is not there, whatever is left of it."""
        self._ended.add(endpoint)

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()
        self._folder.remove()
