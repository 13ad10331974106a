"""Publishers tell the subscribers that are there of themselves; nobody looks again and again.

Datagrams in the user's folder: ``+ENDPOINT`` for a publisher that came, ``-ENDPOINT`` for one that
goes. A subscriber listens first and looks then; a publisher binds first and tells then: so neither
misses the other, whoever came first.
"""

from __future__ import annotations

import socket
from pathlib import Path

from zfast.events.runtime_folder import PUBLISHER, SUBSCRIBER, own_folder
from zfast.owned_folder import owned_folders

_SOCKET_NAME = "arrivals.sock"
CONTROL_NAME = "control.sock"
EVENTS_NAME = "events.sock"


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
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder = own_folder(SUBSCRIBER, parent)
        self.name = self._folder.path.name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._folder.path / _SOCKET_NAME))

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._socket.fileno()

    def present(self) -> list[str]:
        """The endpoints of the publishers that are there now, dead ones' perhaps among them."""
        return [
            f"ipc://{folder / CONTROL_NAME}" for folder in owned_folders(self._parent, PUBLISHER)
        ]

    def take(self) -> list[str]:
        """The endpoints of those that came since the last call."""
        came: list[str] = []
        while True:
            try:
                text = self._socket.recv(4096).decode(errors="replace")
            except BlockingIOError:
                return came
            if text.startswith("+ipc://"):
                came.append(text[1:])

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()
        self._folder.remove()
