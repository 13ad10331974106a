"""The core rows: what is measured, against what, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from zfast.benchmark.peers import ArrayWork, Peer, Sender


@dataclass(frozen=True)
class CoreRow:
    """One comparison.

    Attributes:
        name: What is done, for a person.
        reference: What zfast is compared with.
        limited_by: Which limits of the machine bound it, for a person.
        work, unit: What one round does.
        rounds: Of each side, at most.
        open_reference, open_zfast: Start the two sides.
    """

    name: str
    reference: str
    limited_by: str
    work: float
    unit: str
    rounds: int
    open_reference: Callable[[], Peer]
    open_zfast: Callable[[], Peer]


def core_rows(small: bool = False) -> list[CoreRow]:
    """The rows, in the order they are shown.

    Args:
        small: Each code path with little to do; such timings say nothing.
    """
    part = 100 if small else 1
    messages, pings, nbytes = 100_000 // part, 500 // part, 100_000_000 // part
    rounds = 3 if small else 15
    work = CoreRow(
        "arithmetic on 50 MB arrays",
        "NumPy on the heap",
        "page faults, then memory bandwidth",
        3 * nbytes,
        "bytes",
        rounds,
        partial(ArrayWork, False, nbytes // 2),
        partial(ArrayWork, True, nbytes // 2),
    )
    kinds = [
        (
            "64 B payloads",
            "pyzmq send, recv",
            "system calls and queue slots a message; zfast sends batches",
            (messages, "messages"),
            ("small", messages, 0),
        ),
        (
            "round trip of a small dict",
            "pyzmq send_pyobj, recv_pyobj",
            "the ping of two processes",
            (pings, "round trips"),
            ("ping", pings, 0),
        ),
        (
            "100 MB of arrays",
            "pyzmq multipart, pickle 5, copy=False",
            "loopback, and page faults where memory is not reused",
            (nbytes, "bytes"),
            ("arrays", 1, nbytes),
        ),
    ]
    rows = [
        CoreRow(
            f"{what}, {transport}",
            reference,
            limited_by,
            *done,
            rounds,
            partial(Sender, "pyzmq", kind, transport, *sizes),
            partial(Sender, "zfast", kind, transport, *sizes),
        )
        for what, reference, limited_by, done, (kind, *sizes) in kinds
        for transport in ("ipc", "tcp")
    ]
    return [*rows, work]
