"""Does this host's clock tell the time? Tokens and grace windows end by it."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from zfast.diagnosis.finding import Finding, Level

_CHECK = "clock"
#: Files may be written by hosts whose clocks differ that much.
_TOLERANCE_S = 60.0
#: ``ntp_adjtime`` says so when nobody disciplines the clock.
_TIME_ERROR = 5


def check_clock(folder: Path) -> Iterator[Finding]:
    """Look for files from the future, and ask the kernel whether the clock is kept right.

    Args:
        folder: Where files were written at known times: the key folder.
    """
    future_s, path = max(
        ((_written(path) - time.time(), path) for path in _files(folder)), default=(0.0, folder)
    )
    if future_s > _TOLERANCE_S:
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"{path} was written {future_s:.0f} s in the future: this clock was set back, or that "
            "of who wrote it is fast",
            hint="set the clock (timedatectl set-ntp true); tokens end by it",
        )
    elif _is_kept() is False:
        yield Finding(
            _CHECK,
            Level.NOTE,
            "the kernel's clock is not synchronized (a container may be told so by its host)",
            hint="timedatectl set-ntp true; tokens are taken with a leeway of 30 s",
        )
    else:
        yield Finding(_CHECK, Level.OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.rglob("*") if path.is_file())
    except OSError:
        return


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_kept() -> bool | None:
    """Whether the kernel's clock is disciplined; None where nobody says."""
    if sys.platform != "linux":
        return None
    ask = getattr(ctypes.CDLL(None), "ntp_adjtime", None)
    if ask is None:
        return None
    # A struct timex of zeros only asks.
    state: int = ask(ctypes.create_string_buffer(512))
    return None if state < 0 else state != _TIME_ERROR
