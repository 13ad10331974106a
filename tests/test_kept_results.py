"""What a result that is kept holds of the memory, and the descriptors, of those that are gone."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from hub_jobs import settled
from zfast import arena
from zfast.codec import decode, encode

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="peers share memory on Linux only"
)


def held():
    """Descriptors of segments that this process has, and the bytes of memory behind them."""
    memory, n_fds = {}, 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "zfast-arena" in os.readlink(f"/proc/self/fd/{fd}"):
                status = os.stat(f"/proc/self/fd/{fd}")
                memory[status.st_ino] = status.st_blocks * 512
                n_fds += 1
        except OSError:
            pass  # that of the listing itself
    return n_fds, sum(memory.values())


@pytest.fixture
def start(start_hub):
    def start_with(**policy):
        # The driver's own segment is there before anything is counted.
        arena.prepare(1 << 20)
        return start_hub(**{"max_workers": 1, "spares": 0, **policy})

    return start_with


def test_the_drivers_own_segments_are_let_go_with_its_hub(start):
    argument = np.ones(1_000_000)
    jobs = start()
    kept = [jobs.run(lambda array, _: array + 1, argument)]
    jobs.hub.close()
    arena.trim(0)
    n_fds = held()[0]
    late = jobs.hub.handover.snapshot(encode(argument))  # as by a flow that has not noticed
    assert late.shared_nbytes == argument.nbytes
    assert (decode(late.open()) == 1).all()
    assert held()[0] == n_fds + 1  # the arena's
    del late
    settled(lambda: arena.statistics().n_publications == 0)
    arena.trim(0)
    assert held()[0] == n_fds == 1  # of the worker that is gone
    assert (kept[0] == 2).all()
