"""What a hub and the foremen of other hosts say to each other.

A foreman is the process that a user starts on another host. It has worker processes of its own,
and passes on what they and the hub say to each other.

Messages that must arrive are numbered, see ``zfast.runner.session``; the number stands in the
header as request id. The others, whose number is 0, are about the connection itself.
"""

from __future__ import annotations

import hashlib

from zfast.runner.control import ControlMessage, MessageTable
from zfast.sharing.descriptor import Descriptor

#: What libzmq's heartbeats are set to on both sides, where no limits of a security say it.
HEARTBEAT_MS = 5000
#: Smaller parts travel with the job, or the result, that they belong to.
STAY_MIN_NBYTES = 1 << 20


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


class Serving(ControlMessage, frozen=True):
    """Foreman → hub: other hosts may take data from me there.

    ``public_key``: In Z85, made for this session; empty over ipc.
    """

    endpoint: str
    public_key: str


class Peer(ControlMessage, frozen=True):
    """A foreman as the others know it: where it serves data, and by which key it is known."""

    peer_id: bytes
    endpoint: str
    public_key: str


class Peers(ControlMessage, frozen=True):
    """Hub → foreman: all that serve data now, itself among them; nobody else may ask it."""

    peers: list[Peer]


class Supply(ControlMessage, frozen=True):
    """Hub → foreman: what jobs that follow name; keep it. Buffer 0 holds the bytes."""

    descriptor: Descriptor


class Lies(ControlMessage, frozen=True):
    """Hub → foreman: jobs that follow name that; ask a peer for it, and keep your copy.

    ``served_as``: What the peer calls it, see ``served_as``.
    """

    descriptor: Descriptor
    peer_id: bytes
    served_as: Descriptor


class LetGo(ControlMessage, frozen=True):
    """Hub → foreman: leases that have ended, on what your workers made or on your copies."""

    descriptors: list[Descriptor]


class Unfetched(ControlMessage, frozen=True):
    """Foreman → hub: I have not got that, and jobs that name it are returned.

    ``is_apart``: The peer that has it cannot be reached from here.
    """

    descriptor: Descriptor
    reason: str
    is_apart: bool


class Fetch(ControlMessage, frozen=True):
    """Hub → foreman: send me the bytes of that."""

    descriptor: Descriptor


class Fetched(ControlMessage, frozen=True):
    """Foreman → hub: buffer 0 holds the bytes that were asked for; without it, I have not got
    them."""

    descriptor: Descriptor


class Retire(ControlMessage, frozen=True):
    """Foreman → hub: my workers have ended. Take what you need of my data, and let go of all."""


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


def peer_id_of(session_id: bytes) -> bytes:
    """What other hosts call the one of a session, whose own id is a secret between it and hub."""
    return hashlib.blake2b(session_id, digest_size=8, person=b"zfast peer").digest()


def served_as(session_id: bytes, descriptor: Descriptor) -> Descriptor:
    """What a publication is called at the data endpoint of its host, the one of a session.

    Who was not told cannot guess it, though it knows the segment from another publication in it.
    """
    name = b"%b %d %d" % (descriptor.segment_id, descriptor.generation, descriptor.offset)
    key = hashlib.blake2b(name, key=session_id, digest_size=16, person=b"zfast served").digest()
    return Descriptor(key, 1, 0, descriptor.nbytes)


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
        Serving,
        Peers,
        Lies,
        LetGo,
        Unfetched,
        Fetch,
        Fetched,
        Retire,
        Supply,
    ),
)
