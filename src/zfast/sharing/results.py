"""What a function returns, made ready to be handed over where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zfast import arena
from zfast.ownership import Exclusive, share_results
from zfast.sharing.handover import SHARED_MIN_NBYTES


def seal_results(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that memory of its results that nobody else can write to is sealed.

    Sealed memory of the arena is handed over as it is; anything else is copied once. The wrapper
    is to be called before anybody else sees the result: caches and hooks then get arrays that are
    read-only, and frames that copy what they write to. See ``zfast.ownership.share_results``.
    """
    return share_results(function, _seal_blocks, min_nbytes=SHARED_MIN_NBYTES)


def _seal_blocks(exclusive: Exclusive) -> None:
    for address, nbytes in exclusive.blocks:
        arena.seal(address, nbytes)
