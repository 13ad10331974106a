"""What the hub and its workers say to each other.

Each message's kind stands in its header frame, its fields in the body as MessagePack, its bulk in
buffers. Several payloads in one message are laid end to end: each is its header and its buffers,
``counts`` says how many of them belong to each, the header included. ``shared`` has an entry for
each: a descriptor if it lies in shared memory, None if it is the message's next buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zfast.errors import ProtocolError
from zfast.runner.control import ControlMessage, MessageTable
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.handover import Parcel
from zfast.sharing.segments import Lease

#: Raised with every change of a message below; a hub and all of its workers run one version.
PROTOCOL_VERSION = 5

#: A run of a job: the job's id, and the number of the attempt.
AttemptId = tuple[bytes, int]


class Ready(ControlMessage, frozen=True):
    """Worker → hub: imports done, waiting for jobs."""

    protocol_version: int
    pid: int


class Keep(ControlMessage, frozen=True):
    """Hub → worker: the bytes of a blob that jobs will refer to; buffer 0 holds them."""

    digest: bytes


class Forget(ControlMessage, frozen=True):
    """Hub → worker: drop every blob; those still needed are sent again."""


class Run(ControlMessage, frozen=True):
    """Hub → worker: run a job. Buffers: its payloads. Each descriptor comes with a lease.

    ``serial`` counts the worker's jobs from 1; it writes the serial on its slate as it begins.
    """

    attempt: AttemptId
    serial: int
    code: bytes
    context: bytes
    counts: list[int]
    shared: list[Descriptor | None]


class Done(ControlMessage, frozen=True):
    """Worker → hub: the job's result. Buffers: its payloads.

    A descriptor is a publication that the worker opens herewith, or a part of one that it holds a
    lease on.
    """

    attempt: AttemptId
    counts: list[int]
    shared: list[Descriptor | None]


class Failed(ControlMessage, frozen=True):
    """Worker → hub: the job could not be run, or its result not be sent. The worker lives."""

    attempt: AttemptId
    error_type: str
    message: str
    traceback: str


class Note(ControlMessage, frozen=True):
    """Worker → hub: something said while a job runs, for the layer above. Buffer 0 holds it."""

    job_id: bytes
    topic: str


class Warm(ControlMessage, frozen=True):
    """Hub → worker: get ready for jobs of these codes in this context, blobs that were sent."""

    codes: list[bytes]
    context: bytes


class Recall(ControlMessage, frozen=True):
    """Hub → worker: give a job back if it has not begun. Else its end is told as always."""

    attempt: AttemptId


class Returned(ControlMessage, frozen=True):
    """Worker → hub: that job has not begun, and will not."""

    attempt: AttemptId


class Leaving(ControlMessage, frozen=True):
    """Worker → hub: something asked me to end; give me no more jobs, and stop me when I am done."""


class Stop(ControlMessage, frozen=True):
    """Hub → worker: finish what runs, then exit."""


class Release(ControlMessage, frozen=True):
    """Worker → hub: leases that have ended, by segment and generation."""

    keys: list[tuple[bytes, int]]


class Free(ControlMessage, frozen=True):
    """Hub → worker: publications of yours that nobody holds any more."""

    generations: list[int]


class Gone(ControlMessage, frozen=True):
    """Owner → hub → workers: segments that are no more; close or unmap them.

    Or, of an owner that has ended, whose memory is another by now: who needs one again asks for it.
    """

    segment_ids: list[bytes]


#: Kinds start well above a channel's, so that one talking to the other is told at once.
HUB_MESSAGES = MessageTable(
    64,
    (
        Ready,
        Keep,
        Forget,
        Run,
        Done,
        Failed,
        Note,
        Stop,
        Release,
        Free,
        Gone,
        Warm,
        Recall,
        Returned,
        Leaving,
    ),
)


def join_parcels(
    parcels: Iterable[Parcel], stays: Callable[[Lease], bool] = lambda _: True
) -> tuple[list[int], list[Descriptor | None], list[bytes | memoryview]]:
    """Lay parcels end to end: ``counts``, ``shared`` and buffers. Copies nothing.

    Args:
        stays: Whether the receiver reads what is leased where it lies; else it is mapped here, and
            travels.
    """
    counts: list[int] = []
    shared: list[Descriptor | None] = []
    buffers: list[bytes | memoryview] = []
    for parcel in parcels:
        counts.append(1 + len(parcel.parts))
        shared.append(None)
        buffers.append(parcel.header)
        for part in parcel.parts:
            if isinstance(part, Lease) and stays(part):
                shared.append(part.descriptor)
            else:
                shared.append(None)
                buffers.append(part.view() if isinstance(part, Lease) else part)
    return counts, shared, buffers


def split_parcels(
    message: Run | Done, buffers: Sequence[memoryview], lease: Callable[[Descriptor], Lease]
) -> list[Parcel]:
    """Undo ``join_parcels``; the parcels borrow from ``buffers``, their headers are copied.

    Args:
        lease: Makes the lease that a descriptor came with; called for every descriptor.

    Raises:
        ProtocolError: The counts do not add up, or ``lease`` refuses.
    """
    n_own = sum(descriptor is None for descriptor in message.shared)
    if (
        any(count < 1 for count in message.counts)
        or sum(message.counts) != len(message.shared)
        or n_own != len(buffers)
    ):
        raise ProtocolError(
            f"payload counts {message.counts} do not fit {len(message.shared)} entries, "
            f"{n_own} of them among {len(buffers)} buffers"
        )
    rest = iter(buffers)
    parts = [next(rest) if entry is None else lease(entry) for entry in message.shared]
    parcels: list[Parcel] = []
    start = 0
    for count in message.counts:
        header = parts[start]
        if isinstance(header, Lease):
            raise ProtocolError("a payload's header in shared memory")
        parcels.append(Parcel(bytes(header), parts[start + 1 : start + count]))
        start += count
    return parcels
