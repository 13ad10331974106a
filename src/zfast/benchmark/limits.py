"""What the machine itself can do: copies, page faults, the kernel's loopback, a ping."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from zfast.benchmark.loopback_limits import LOOPBACKS, PINGS
from zfast.benchmark.memory_limits import COPIES, FAULTS, Round

SIZE_NBYTES = 256 * 2**20
SMOKE_NBYTES = 2**20
ROUNDS = 7
PING_COUNT, SMOKE_PINGS = 2000, 20


@dataclass
class Limit:
    """One measured limit. `values` are in `unit`, one a round."""

    name: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)


def measure_limits(smoke: bool = False) -> list[Limit]:
    """Measure everything, rounds taken in turns; about ten seconds."""
    nbytes = SMOKE_NBYTES if smoke else SIZE_NBYTES
    pages = nbytes / mmap.PAGESIZE
    # One source for all: the machine may be small.
    source = np.random.default_rng(7).integers(0, 255, nbytes, np.uint8, endpoint=True)
    kinds: list[tuple[dict[str, Callable[[Any], Any]], Any, Callable[[float], float], str]] = [
        ({**COPIES, **LOOPBACKS}, source, lambda seconds: nbytes / seconds / 1e9, "GB/s"),
        (FAULTS, nbytes, lambda seconds: seconds / pages * 1e9, "ns/page"),
        (PINGS, SMOKE_PINGS if smoke else PING_COUNT, lambda seconds: seconds * 1e6, "µs"),
    ]
    with ExitStack() as stack:
        limits: list[Limit] = []
        rounds: list[Callable[[], float]] = []
        for makers, argument, convert, unit in kinds:
            for name, make in makers.items():
                one_round: Round = stack.enter_context(make(argument))
                limits.append(Limit(name, unit, []))
                rounds.append(_converted(one_round, convert))
        for i in range(-1, 1 if smoke else ROUNDS):
            for limit, measure in zip(limits, rounds, strict=True):
                value = measure()
                if i >= 0:
                    limit.values.append(value)
    return limits


def _converted(one_round: Round, convert: Callable[[float], float]) -> Callable[[], float]:
    return lambda: convert(one_round())
