"""What a hub and the foremen of other hosts say to each other.

A foreman is the process that a user starts on another host. It has worker processes of its own,
and passes on what they and the hub say to each other.

Messages that must arrive are numbered, see ``zfast.runner.session``; the number stands in the
header as request id. The others, whose number is 0, are about the connection itself.
"""

from __future__ import annotations

from zfast.runner.control import ControlMessage, MessageTable

#: What libzmq's heartbeats are set to on both sides, where no limits of a security say it.
HEARTBEAT_MS = 5000


class Join(ControlMessage, frozen=True):
    """Foreman → hub: a new session, please. Not numbered.

    ``foreman_id`` is random; what the same one had before is over.
    """

    protocol_version: int
    foreman_id: bytes
    host: str
    pid: int


class Welcome(ControlMessage, frozen=True):
    """Hub → foreman: the first message of a session. Buffer 0, if any, is the initializer.

    ``versions`` are of packages that must be the same on both hosts. The fields after ``lease_s``
    are for the workers, see ``WorkerConfig``.
    """

    session_id: bytes
    versions: dict[str, str]
    lease_s: float
    executor: str
    environment: dict[str, str]
    sys_path: list[str]
    argv: list[str]
    main_file: str | None
    max_worker_nbytes: int | None


class Resume(ControlMessage, frozen=True):
    """Foreman → hub: go on with that session, of which so many messages came. Not numbered."""

    session_id: bytes
    received: int


class Resumed(ControlMessage, frozen=True):
    """Hub → foreman: so many of yours came; the rest once more. Not numbered."""

    received: int


class Refuse(ControlMessage, frozen=True):
    """Hub → foreman: no such session. Not numbered.

    ``final``: do not try again; else join anew.
    """

    reason: str
    final: bool


class Beat(ControlMessage, frozen=True):
    """Both: I live, and so many of your messages came. Not numbered."""

    received: int


class Relayed(ControlMessage, frozen=True):
    """Both: a message between the hub and a worker. Buffers: its own."""

    worker: bytes
    kind: int
    body: bytes


class Started(ControlMessage, frozen=True):
    """Foreman → hub: a worker process; it says itself when it is ready."""

    worker: bytes
    pid: int


class Died(ControlMessage, frozen=True):
    """Foreman → hub: a worker is gone; see ``WorkerHandle`` for what is told of it."""

    worker: bytes
    begun: int
    cause: str
    words: str


class End(ControlMessage, frozen=True):
    """Hub → foreman: kill that worker, and say why."""

    worker: bytes
    verdict: str | None


class Quit(ControlMessage, frozen=True):
    """Foreman → hub: I leave; my workers are gone. The last message of a session."""

    reason: str


class Farewell(ControlMessage, frozen=True):
    """Hub → foreman: it is over; what your workers still do does not count. Not numbered."""


class Large(ControlMessage, frozen=True):
    """Both: announces a message that comes in chunks: its body, then its buffers.

    ``sizes``: 8 bytes each, little-endian.
    """

    kind: int
    sizes: bytes


class Chunk(ControlMessage, frozen=True):
    """Both: the next bytes of the message that was announced. Buffers: pieces of it."""


class AskStatus(ControlMessage, frozen=True):
    """Anybody who may → hub: how are you? Not numbered."""


class Status(ControlMessage, frozen=True):
    """Hub → who asked: buffer 0 is ``zfast.runner.status.HubStatus`` as JSON. Not numbered."""


REMOTE_MESSAGES = MessageTable(
    96,
    (
        Join,
        Welcome,
        Resume,
        Resumed,
        Refuse,
        Beat,
        Relayed,
        Started,
        Died,
        End,
        Quit,
        Farewell,
        Large,
        Chunk,
        AskStatus,
        Status,
    ),
)
