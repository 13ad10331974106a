"""Who is connected to a guarded socket, by file descriptor, and how one of them is cut.

libzmq has no call that ends one connection of a bound socket. Its monitor tells the descriptor of
each, and shutting that down ends the connection as if the peer had: libzmq sees the end of the
stream and cleans up by itself.

Which key a connection has, libzmq does not say either; the ZAP request names the key and the peer's
address without its port. So a key is laid on the connections that can have made the request: same
address, their handshake at that point. That is one, unless handshakes coincide; then a cut takes
all of them, and whoever was innocent connects again.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: Where tcpi_bytes_acked and tcpi_bytes_received lie in Linux's struct tcp_info.
_TCP_INFO_COUNTS = struct.Struct("=120xQQ")
#: What a peer has sent when it is asked for by ZAP: greeting, HELLO, INITIATE.
_ASKED_NBYTES = 64 + 202 + 257
#: What was sent to a peer that is in: greeting, WELCOME, READY. A stranger gets no READY.
_ADMITTED_NBYTES = 64 + 170 + 30
#: What the kernel tells of a connection over tcp.
_HAS_COUNTS = sys.platform == "linux"


def is_open(fd: int, inode: int) -> bool:
    """Whether a descriptor still is the file or socket that had this inode."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


@dataclass(eq=False)
class Connection:
    """One accepted connection.

    Attributes:
        fd: libzmq's own; only ever used through a duplicate whose ``inode`` was compared.
        address: The peer's, ``host:port``.
        accepted_s: On the monotonic clock.
        keys: Those it may have.
    """

    fd: int
    inode: int
    address: str
    accepted_s: float
    keys: set[str] = field(default_factory=set)
    failure: str = ""

    def cut(self) -> bool:
        """End it; whether it still was there."""
        with _duplicate(self) as twin:
            if twin is None:
                return False
            try:
                twin.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return False
            return True

    def is_open(self) -> bool:
        """Whether its descriptor still is that connection."""
        return is_open(self.fd, self.inode)

    def is_half_open(self) -> bool:
        """Whether its handshake is not done."""
        counts = self._counts()
        return counts is None or counts[0] < _ADMITTED_NBYTES

    def may_have_asked(self) -> bool:
        """Whether it has sent what makes libzmq ask its ZAP handler."""
        counts = self._counts()
        return counts is None or counts[1] >= _ASKED_NBYTES

    def received_nbytes(self) -> int:
        """What it has sent, as far as anybody counts."""
        counts = self._counts()
        return counts[1] if counts is not None else 0

    def _counts(self) -> tuple[int, int] | None:
        """Bytes that the peer has acknowledged, and sent; None where nobody counts."""
        if not _HAS_COUNTS:
            return None
        with _duplicate(self) as twin:
            if twin is None:
                return 0, 0
            try:
                info = twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            except OSError:
                return 0, 0
        return _TCP_INFO_COUNTS.unpack_from(info) if len(info) >= 136 else None


class Connections:
    """The open connections of one guarded socket. Threads: the gate's.

    Args:
        handshake_s: After so long libzmq has closed what has not finished its handshake.
    """

    def __init__(self, handshake_s: float) -> None:
        self._handshake_s = handshake_s
        self._open: dict[int, Connection] = {}
        self._ending: set[Connection] = set()

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def accepted(self, fd: int, ports: Iterable[int]) -> Connection | None:
        """A connection was accepted on one of our ports; None if it has ended since."""
        try:
            inode = os.fstat(fd).st_ino
            connection = Connection(fd, inode, "", time.monotonic())
            with _duplicate(connection) as twin:
                # The descriptor may be another socket's by now: only ours have our port.
                if twin is None or twin.getsockname()[1] not in ports:
                    return None
                host, port = twin.getpeername()[:2]
        except OSError:
            return None
        connection.address = f"{host}:{port}"
        # Not in the place of one whose end nobody told: the order is that of acceptance.
        self._open.pop(fd, None)
        self._open[fd] = connection
        return connection

    def ended(self, fd: int) -> Connection | None:
        """A connection has ended; None if it was not known."""
        return self._open.pop(fd, None)

    def all_end(self) -> None:
        """libzmq ends those there are, and tells of none: look for them by ``forget_ended``."""
        self._ending.update(self._open.values())

    def forget_ended(self) -> bool:
        """Forget those of ``all_end`` that have ended; whether others have not yet."""
        for connection in [each for each in self._ending if not each.is_open()]:
            self._ending.discard(connection)
            if self._open.get(connection.fd) is connection:
                del self._open[connection.fd]
        return bool(self._ending)

    def assign(self, key: str, address: str) -> Connection | None:
        """Lay a key on whoever can have asked with it; the connection if it can only be one."""
        asking = [
            connection
            for connection in self._recent()
            if connection.address.rpartition(":")[0].removeprefix("::ffff:")
            == address.removeprefix("::ffff:")
            and connection.is_half_open()
            and connection.may_have_asked()
        ]
        unnamed = [connection for connection in asking if not connection.keys]
        chosen = unnamed if len(unnamed) == 1 else asking
        for connection in chosen:
            connection.keys.add(key)
        return chosen[0] if len(chosen) == 1 else None

    def settle(self, fd: int, key: str) -> None:
        """A message of this key came over this descriptor."""
        connection = self._open.get(fd)
        if connection is not None and len(connection.keys) > 1 and key in connection.keys:
            connection.keys = {key}

    def half_open(self) -> list[Connection]:
        """Those whose handshake is not done, the oldest first."""
        return [connection for connection in self._recent() if connection.is_half_open()]

    def _recent(self) -> Iterator[Connection]:
        """Those young enough to be in their handshake; in the order they were accepted."""
        since = time.monotonic() - self._handshake_s - 1
        # Insertion order is the order of acceptance: the old ones need no look.
        recent = []
        for connection in reversed(self._open.values()):
            if connection.accepted_s < since:
                break
            recent.append(connection)
        return reversed(recent)


class _duplicate:
    """A duplicate of a connection's descriptor while it still is that connection, else None.

    It lives for microseconds: as long as it does, libzmq's close does not end the connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._twin: socket.socket | None = None

    def __enter__(self) -> socket.socket | None:
        try:
            fd = os.dup(self._connection.fd)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_ino != self._connection.inode:
                os.close(fd)
                return None
            self._twin = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            return None
        return self._twin

    def __exit__(self, *_: object) -> None:
        if self._twin is not None:
            self._twin.close()
