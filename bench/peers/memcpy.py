"""A process that copies and reads memory that is there already.

Run: ``memcpy``. A command gives the size; the memory is let go before the answer.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from bench.peers.control import serve

REPETITIONS = 3


def copy_and_read(command: dict[str, Any]) -> dict[str, float]:
    """Copy and read the whole, a few times; the medians."""
    source = np.random.default_rng(7).random(command["nbytes"] // 8)
    target = np.ones_like(source)
    copying, reading = [], []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        np.copyto(target, source)
        copied = time.perf_counter()
        total = target.sum()
        reading.append(time.perf_counter() - copied)
        copying.append(copied - start)
        if total != source.sum():
            raise ValueError("the copy is not the original")
    return {"copy": median(copying), "read": median(reading)}


if __name__ == "__main__":
    serve(copy_and_read)
