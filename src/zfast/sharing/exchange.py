"""How segments' file descriptors get from worker to hub and on: a socket in the hub's folder.

Records of fixed size, a request and an answer each. A worker offers each segment of its own
once, before it publishes in it, and asks for a peer's once, when it reads in it first. Who asks is
known from the socket's peer credentials, not from what it says.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import zmq

from zfast.errors import ProtocolError, TransportError

#: magic, kind, segment id, its size in bytes
_RECORD = struct.Struct("<4sc3x16sQ")
_MAGIC = b"ZFSG"
FILE_NAME = "segments.sock"


class Kind(bytes, Enum):
    """What a record says."""

    OFFER = b"O"
    WANT = b"W"
    YES = b"Y"
    NO = b"N"


def is_supported() -> bool:
    """Whether peers on a Unix socket can be told apart here."""
    return hasattr(socket, "SO_PEERCRED")


class Desk(Protocol):
    """What the hub does for workers. Each raises ProtocolError for "no"."""

    def take_segment(self, pid: int, segment_id: bytes, fd: int, nbytes: int) -> None:
        """Take in a segment; ``fd`` is the desk's from now on."""
        ...

    def lend_segment(self, pid: int, segment_id: bytes) -> tuple[int, int]:
        """A descriptor, which stays the desk's, and the size of a segment."""
        ...


@dataclass(eq=False, slots=True)
class _Connection:
    socket: socket.socket
    pid: int
    received: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)


class SegmentServer:
    """The hub's end. Threads: the hub's only.

    Args:
        path: Where to listen.
        poller: Woken by what workers say; ``serve`` is then to be called.
        desk: What is done for them.
        refuse: Told why a request was refused.
    """

    def __init__(
        self, path: Path, poller: zmq.Poller, desk: Desk, refuse: Callable[[str], None]
    ) -> None:
        self._poller = poller
        self._desk = desk
        self._refuse = refuse
        self._connections: dict[int, _Connection] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen()
        poller.register(self._listener.fileno(), zmq.POLLIN)

    def serve(self) -> None:
        """Answer whatever was asked."""
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # nobody more is there
                break
            accepted.setblocking(False)
            self._connections[accepted.fileno()] = _Connection(accepted, _peer_pid(accepted))
            self._poller.register(accepted.fileno(), zmq.POLLIN)
        for connection in list(self._connections.values()):
            self._serve(connection)

    def close(self) -> None:
        """Hang up on everyone."""
        for connection in list(self._connections.values()):
            self._hang_up(connection)
        self._poller.unregister(self._listener.fileno())
        self._listener.close()

    def _serve(self, connection: _Connection) -> None:
        while True:
            try:
                missing = _RECORD.size - len(connection.received)
                data, fds, _, _ = socket.recv_fds(connection.socket, missing, 1)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            connection.fds += fds
            if not data:
                self._hang_up(connection)
                return
            connection.received += data
            if len(connection.received) == _RECORD.size:
                record, connection.received = bytes(connection.received), bytearray()
                fds, connection.fds = connection.fds, []
                try:
                    self._answer(connection, record, fds)
                except OSError:  # it is gone
                    self._hang_up(connection)
                    return

    def _answer(self, connection: _Connection, record: bytes, fds: list[int]) -> None:
        magic, kind, segment_id, nbytes = _RECORD.unpack(record)
        try:
            if magic != _MAGIC:
                raise ProtocolError("a request that is not one of ours")
            if kind == Kind.OFFER and len(fds) == 1:
                self._desk.take_segment(connection.pid, segment_id, fds.pop(), nbytes)
                connection.socket.sendall(_RECORD.pack(_MAGIC, Kind.YES, segment_id, nbytes))
            elif kind == Kind.WANT and not fds:
                fd, nbytes = self._desk.lend_segment(connection.pid, segment_id)
                answer = _RECORD.pack(_MAGIC, Kind.YES, segment_id, nbytes)
                socket.send_fds(connection.socket, [answer], [fd])
            else:
                raise ProtocolError(f"a request of unknown kind {kind!r}")
        except ProtocolError as error:
            self._refuse(f"process {connection.pid}: {error.message}")
            connection.socket.sendall(_RECORD.pack(_MAGIC, Kind.NO, segment_id, 0))
        finally:
            _close_all(fds)

    def _hang_up(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        self._poller.unregister(connection.socket.fileno())
        _close_all(connection.fds)
        connection.socket.close()


class SegmentClient:
    """A worker's end. Threads: any; each request waits for its answer.

    For as long as that takes: a hub that is stopped, or kept from its work by a long call into C,
    answers afterwards, and one that has ended hangs up.

    Args:
        path: Where the hub listens.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def offer(self, segment_id: bytes, fd: int, nbytes: int) -> None:
        """Give the hub a segment of this process; ``fd`` stays the caller's.

        Raises:
            TransportError: The hub cannot be reached, or refuses.
        """
        self._ask(Kind.OFFER, segment_id, nbytes, [fd])

    def fetch(self, segment_id: bytes) -> tuple[int, int]:
        """A new file descriptor of a peer's segment, the caller's to close, and its size.

        Raises:
            TransportError: The hub cannot be reached, or knows no lease of this process there.
        """
        (fd,), nbytes = self._ask(Kind.WANT, segment_id, 0, [])
        return fd, nbytes

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(
        self, kind: Kind, segment_id: bytes, nbytes: int, fds: list[int]
    ) -> tuple[list[int], int]:
        request = _RECORD.pack(_MAGIC, kind, segment_id, nbytes)
        received, answered = b"", []
        with self._lock:
            try:
                connection = self._connect()
                socket.send_fds(connection, [request], fds)
                while len(received) < _RECORD.size:
                    data, new_fds, _, _ = socket.recv_fds(
                        connection, _RECORD.size - len(received), 1
                    )
                    if not data:
                        raise ConnectionResetError("the hub hung up")
                    received += data
                    answered += new_fds
            except BaseException as error:
                # An answer that comes after all must not be taken for that to another request.
                self._hang_up()
                _close_all(answered)
                if not isinstance(error, OSError):
                    raise
                raise TransportError(
                    f"the hub does not answer at {self._path}: {error}", errno=error.errno
                ) from error
        _, answer, answered_id, nbytes = _RECORD.unpack(received)
        if answer != Kind.YES or answered_id != segment_id or len(answered) != (kind == Kind.WANT):
            _close_all(answered)
            raise TransportError(
                f"the hub refuses segment {segment_id[:3].hex()}… to this process",
                hint="its log says why",
            )
        return answered, nbytes

    def _connect(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(self._path)
        return self._socket


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _peer_pid(connection: socket.socket) -> int:
    """The process at the other end, 0 if it is another user's."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack("3i", credentials)
    return int(pid) if uid == os.getuid() else 0
