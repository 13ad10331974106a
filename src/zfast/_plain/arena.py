"""No shared memory: every request for it is refused, and results travel as frames or copies.

The names are ``zfast._arena``'s.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import psutil

from zfast.errors import ArenaError

BACKINGS = ("memfd", "shm", "disk")


class Memory(NamedTuple):
    """What this process may take of the machine's memory."""

    total_nbytes: int
    available_nbytes: int


def read_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Memory:
    """The machine's memory; cgroups are not looked at."""
    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available)


def started() -> bool:
    """It never is."""
    return False


def _refused(*_: object, **__: object) -> NoReturn:
    raise ArenaError(
        "this zfast has no shared memory: its core is plain Python",
        hint="install a wheel with the compiled core (Linux, macOS)",
    )


probe = start = allocate = copy_in = segment = own_view = install_handler = prepare = _refused
extract = _refused


class Block:
    """There is none."""

    __init__ = _refused


class SharedView:
    """There is none."""

    __init__ = _refused


class Mapping:
    """There is none."""

    __init__ = _refused


class Publication(NamedTuple):
    """There is none."""

    segment_id: bytes
    segment_index: int
    generation: int
    block_offset: int
    block_nbytes: int
    offset: int


class Segment(NamedTuple):
    """There is none."""

    segment_id: bytes
    fd: int
    nbytes: int


class ArenaStatistics(NamedTuple):
    """Zero throughout."""

    n_segments: int = 0
    n_retired_segments: int = 0
    n_segments_made: int = 0
    n_blocks: int = 0
    n_publications: int = 0
    n_allocations: int = 0
    n_fallbacks: int = 0
    mapped_nbytes: int = 0
    peak_mapped_nbytes: int = 0
    live_nbytes: int = 0
    peak_live_nbytes: int = 0
    published_nbytes: int = 0
    free_nbytes: int = 0
    retained_nbytes: int = 0
    retired_nbytes: int = 0
    largest_free_nbytes: int = 0
    fragmentation: float = 0.0


def statistics() -> ArenaStatistics:
    """Zero throughout."""
    return ArenaStatistics()


def owns(address: int) -> bool:
    """No address lies in an arena."""
    return False


def publish(address: int, nbytes: int, *, exclusive: bool) -> None:
    """Nothing can be published."""


def unpublish(generation: int) -> bool:
    """Nothing was published."""
    return False


def is_sealed(address: int, nbytes: int) -> bool:
    """Nothing was sealed."""
    return False


def remove_handler() -> bool:
    """None was installed."""
    return False


def released_segments() -> list[int]:
    """There never was any."""
    return []


def settle_loans() -> int:
    """Nothing is lent."""
    return 0


def trim(retain_nbytes: int = 0) -> None:
    """There is nothing to give back."""
