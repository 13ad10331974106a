"""What a hub tells about itself to ``zfast status``."""

from __future__ import annotations

import time

import msgspec

from zfast.runner.dispatcher import Dispatcher
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_worker import RemoteWorker
from zfast.runner.worker_handle import WorkerHandle
from zfast.runner.worker_process import WorkerProcess


class RunningJob(msgspec.Struct):
    """A job in a worker's hands; the first of a worker's runs, the others wait behind it."""

    job_id: str
    attempt: int
    since_s: float


class WorkerStatus(msgspec.Struct):
    """One worker.

    Attributes:
        host: Empty for the hub's own.
        state: ``starting``, ``idle``, ``busy``, ``leaving``, ``stopped`` by a signal, or
            ``silent``: its host is not heard.
        private_nbytes: Its memory without what it shares, where that is known.
    """

    pid: int
    host: str
    state: str
    jobs: list[RunningJob]
    private_nbytes: int | None


class HubStatus(msgspec.Struct):
    """One hub, at one moment.

    Attributes:
        pid: Of the flow run's process.
        ended: Jobs that have ended, well or not.
        queued: Jobs that no worker has.
        replays: Jobs that run, or wait to run, again.
        leased_nbytes: Shared memory that somebody may read.
        remote_nbytes: Results that lie on other hosts.
        inflight_nbytes: Bytes that travelled for jobs that have not ended.
        hosts: Names of the foremen that have joined.
    """

    pid: int
    endpoint: str | None
    lease_s: float
    workers: list[WorkerStatus]
    ended: int
    queued: int
    running: int
    replays: int
    leased_nbytes: int
    remote_nbytes: int
    inflight_nbytes: int
    hosts: list[str]


def describe_worker(worker: WorkerHandle, dispatcher: Dispatcher) -> WorkerStatus:
    """What there is to tell of a worker. Threads: the hub's."""
    now = time.monotonic()
    jobs = [
        RunningJob(held.job.job_id.hex(), held.attempt, now - held.since)
        for held in dispatcher.held_by(worker)
    ]
    vitals = worker.vitals if isinstance(worker, WorkerProcess) else None
    if isinstance(worker, RemoteWorker) and worker.host.is_silent:
        state = "silent"
    elif vitals is not None and vitals.is_stopped:
        state = "stopped"
    elif worker.leaving:
        state = "leaving"
    elif not worker.ready:
        state = "starting"
    else:
        state = "busy" if jobs else "idle"
    return WorkerStatus(
        pid=worker.pid,
        host=worker.host.name if isinstance(worker, RemoteWorker) else "",
        state=state,
        jobs=jobs,
        private_nbytes=(vitals.private_nbytes or None) if vitals is not None else None,
    )


def describe_hub(
    pid: int,
    endpoint: str | None,
    lease_s: float,
    workers: list[WorkerHandle],
    hosts: list[str],
    dispatcher: Dispatcher,
    desk: LeaseDesk,
    data: RemoteData,
) -> bytes:
    """A ``HubStatus`` as JSON. Threads: the hub's."""
    described = [describe_worker(worker, dispatcher) for worker in workers]
    status = HubStatus(
        pid=pid,
        endpoint=endpoint,
        lease_s=lease_s,
        workers=described,
        ended=dispatcher.n_ended,
        queued=dispatcher.n_queued,
        running=sum(len(worker.jobs) for worker in described),
        replays=dispatcher.n_replays,
        leased_nbytes=desk.table.leased_nbytes,
        remote_nbytes=data.remote_nbytes,
        inflight_nbytes=dispatcher.inflight_nbytes,
        hosts=hosts,
    )
    return msgspec.json.encode(status)
