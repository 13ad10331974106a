"""How a hub's processes fare, as plain numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import psutil

from zfast.runner.dispatcher import Dispatcher
from zfast.runner.vitals import private_nbytes
from zfast.runner.worker_process import WorkerProcess
from zfast.sharing.lease_table import DRIVER, LeaseTable, Process


class ProcessStatistics(NamedTuple):
    """One process: the driver first, then its workers.

    Attributes:
        state: ``Driver``, ``Starting``, ``Idle`` or ``Busy``.
        memory_nbytes: Without what it shares with others.
        arena_nbytes: Shared memory that it owns.
        lent_nbytes: Bytes of it that somebody has a lease on.
        leases: How many publications it has leases on.
        queued: Of the driver: jobs that have not ended.
        replays: Of the driver: jobs that were begun again.
    """

    pid: int
    state: str
    memory_nbytes: int
    arena_nbytes: int
    lent_nbytes: int
    leases: int
    queued: int = 0
    replays: int = 0


def collect(
    workers: Iterable[WorkerProcess], dispatcher: Dispatcher, table: LeaseTable
) -> list[ProcessStatistics]:
    """Those of now. Threads: the hub's; some 50 µs for each process."""

    def of(pid: int, state: str, process: Process, *more: int) -> ProcessStatistics:
        return ProcessStatistics(
            pid, state, _memory(pid), *table.owned_nbytes(process), table.n_held(process), *more
        )

    driver = of(os.getpid(), "Driver", DRIVER, dispatcher.n_jobs, dispatcher.n_begun_again)
    return [driver] + [
        of(worker.process.pid, _state(worker, dispatcher), worker.routing_id) for worker in workers
    ]


def _state(worker: WorkerProcess, dispatcher: Dispatcher) -> str:
    if not worker.ready:
        return "Starting"
    return "Busy" if dispatcher.is_busy(worker) else "Idle"


def _memory(pid: int) -> int:
    try:
        return private_nbytes(psutil.Process(pid).memory_info())
    except (psutil.Error, OSError):
        return 0
