"""What a result that is kept holds of the memory, and the descriptors, of those that are gone."""

from __future__ import annotations

import gc
import os
import signal
import time

import numpy as np
import pytest

from hub_jobs import only, run_by, settled
from zfast import arena
from zfast.codec import decode, encode
from zfast.errors import ArenaError
from zfast.sharing.lease_table import MAX_KEPT_RATIO

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="peers share memory on Linux only"
)
SMALL = 20_000  # 156 KiB
PAGE_NBYTES = os.sysconf("SC_PAGESIZE")


def ones(n, _):
    return np.ones(n)


def many_ones(n, _):
    return [np.ones(SMALL) for _ in range(n)]


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


def mapped(pid="self"):
    """Bytes of other processes' segments that a process has mapped and read."""
    with open(f"/proc/{pid}/smaps") as maps:
        lines = maps.read().splitlines()
    resident, counting = 0, False
    for line in lines:
        if "-" in line.split(" ", 1)[0]:
            counting = "zfast-arena" in line and " r--s " in line
        elif counting and line.startswith("Rss:"):
            resident += int(line.split()[1]) << 10
    return resident


@pytest.fixture
def start(start_hub):
    def start_with(**policy):
        # The driver's own segment is there before anything is counted.
        arena.prepare(1 << 20)
        return start_hub(**{"max_workers": 1, "spares": 0, **policy})

    return start_with


@pytest.mark.parametrize("read", [False, True])
def test_a_result_that_is_kept_holds_little_of_its_workers_memory(start, read):
    arena.prepare(1 << 20)
    n_fds, nbytes = held()
    kept = []
    for _ in range(3):
        jobs = start()
        result = jobs.parcel(jobs.submit(ones, SMALL))
        kept.append(decode(result.open()) if read else result)
        del result
        jobs.hub.close()
        del jobs
        gc.collect()
    allowed = 3 * (SMALL * 8 + 2 * PAGE_NBYTES)
    assert held()[1] - nbytes <= allowed
    assert mapped() <= allowed
    assert held()[0] - n_fds <= 3
    for array in kept:
        assert ((array if read else decode(array.open())) == 1).all()
    kept.clear()
    del array
    assert settled(lambda: gc.collect() >= 0 and held()[0] <= n_fds)


def test_what_is_kept_of_many_results_when_the_run_is_over(start):
    jobs = start()
    result = jobs.parcel(jobs.submit(many_ones, 60))
    jobs.hub.close()
    nbytes = held()[1]
    arrays = decode(result.open())
    del result
    kept = arrays[17]
    del arrays
    gc.collect()
    assert nbytes - held()[1] > 32 << 20  # its worker's segment had 64 MiB
    assert mapped() <= MAX_KEPT_RATIO * kept.nbytes
    assert (kept == 1).all()


def test_workers_read_on_in_what_is_left(start, journal, tmp_path):
    jobs = start(max_workers=2, min_workers=2)
    settled(lambda: sum(worker.available for worker in jobs.hub._staffing.workers) == 2)
    maker, reader = jobs.hub.worker_pids
    go = tmp_path / "go"

    def read_twice(array, _):
        first = float(array.sum())
        journal.note("job", "read")
        while not go.exists():
            time.sleep(0.005)
        return first + float(array.sum())

    result = run_by(jobs, [maker], tmp_path, ones, SMALL)
    nbytes = held()[1]
    with only(jobs, [reader], tmp_path):
        outcome = jobs.submit(read_twice, result)
        journal.wait_for("job", "read")
        os.kill(maker, signal.SIGKILL)
        settled(lambda: nbytes - held()[1] > 32 << 20)
        go.touch()
        assert jobs.value(outcome) == 2 * SMALL
    settled(lambda: mapped(reader) == 0)
    settled(lambda: sum(worker.available for worker in jobs.hub._staffing.workers) == 2)
    total = run_by(jobs, [reader], tmp_path, lambda array, _: float(array.sum()), result)
    assert decode(total.open()) == SMALL
    assert 0 < mapped(reader) <= SMALL * 8 + 2 * PAGE_NBYTES


def test_what_cannot_be_reduced_stays_as_it_is(start, monkeypatch):
    def refuse(*_):
        raise ArenaError("no memory")

    monkeypatch.setattr(arena, "extract", refuse)
    jobs = start()
    result = jobs.parcel(jobs.submit(ones, SMALL))
    n_fds = held()[0]
    array = decode(result.open())
    jobs.hub.close()
    assert (array == 1).all()
    del result, array
    assert settled(lambda: gc.collect() >= 0 and held()[0] < n_fds)


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
