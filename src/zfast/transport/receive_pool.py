"""Warm memory for received values: what this process keeps for the next ones, and how much.

Large values are received into blocks of memory that go on a list when their last view dies, and
are used again for the next value of about the same size, so that no page has to be faulted in.
What lies on the list unused for ten seconds is given back to the system. Threads: any. A forked
child has a copy of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from zfast import _core
from zfast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What the pool holds and has done.

    Attributes:
        retained_nbytes: Kept for reuse.
        in_use_nbytes: Under values that are alive or on their way.
        reused, mapped: How many blocks were reused, and mapped afresh, since the process began.
    """

    retained_nbytes: int
    in_use_nbytes: int
    reused: int
    mapped: int


def statistics() -> PoolStatistics:
    """What the pool holds now."""
    return PoolStatistics(*_core.pool_statistics())


def retain_at_most(nbytes: int) -> None:
    """Keep at most ``nbytes`` for reuse, at once and from now on; 512 MiB until it is called."""
    if not isinstance(nbytes, int) or nbytes < 0:
        raise ConfigError(f"nbytes must be a whole number from 0 on, not {nbytes!r}")
    _core.limit_pool(nbytes)


def trim() -> None:
    """Give back all that is kept for reuse."""
    _core.trim_pool()
