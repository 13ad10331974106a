"""The hub: one thread in the driver that owns the workers, their socket and the job queue."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import zmq

from zfast.errors import (
    ConfigError,
    ProtocolError,
    WorkerDiedError,
    WorkerError,
    WorkerStartError,
)
from zfast.runner.commands import Command, CommandQueue
from zfast.runner.hub_socket import HubSocket
from zfast.runner.job import Job, JobCancelledError, JobFailedError, Outcome
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.pool import WorkerPool
from zfast.runner.protocol import (
    PROTOCOL_VERSION,
    ControlMessage,
    Done,
    Failed,
    Forget,
    Gone,
    Keep,
    Note,
    Ready,
    Release,
    Run,
    Stop,
    join_parcels,
)
from zfast.runner.runtime_folder import RuntimeFolder
from zfast.runner.worker_process import WorkerConfig, WorkerProcess
from zfast.sharing import exchange
from zfast.sharing.handover import Handover
from zfast.sharing.lease_table import LeaseTable
from zfast.sharing.segments import next_settling

logger = logging.getLogger("zfast.runner")

#: A worker that was told to stop, and has nothing to do, is killed after so long.
STOP_GRACE_S = 5.0
#: Blobs that a worker keeps; with one more it starts anew.
MAX_BLOBS = 256
#: After so many workers in a row died before they were ready, the hub gives up.
MAX_FAILED_STARTS = 3


class Hub:
    """Runs jobs on up to ``max_workers`` warm worker processes.

    Workers are started when there are more jobs than idle workers, and kept until ``close``.

    Args:
        max_workers: At least 1.
        executor: ``module:name`` of what runs jobs in a worker, see ``zfast.runner.worker``.
        environment: Variables for the workers, on top of this process's.
        on_note: Called on the hub's thread with the job id, topic and bytes of each note.

    Threads: ``submit``, ``cancel_pending`` and ``close`` from any.
    """

    def __init__(
        self,
        *,
        max_workers: int,
        executor: str,
        environment: Mapping[str, str],
        on_note: Callable[[bytes, str, memoryview], None],
    ) -> None:
        self._on_note = on_note
        self._pid = os.getpid()
        self._folder = RuntimeFolder()
        self._segment_socket = self._folder.path / exchange.FILE_NAME
        self._poller = zmq.Poller()
        config = WorkerConfig(
            endpoint=self._folder.endpoint,
            runtime_folder=str(self._folder.path),
            executor=executor,
            environment=dict(environment),
            segment_socket=str(self._segment_socket) if exchange.is_supported() else None,
            sys_path=[os.path.abspath(entry) for entry in sys.path],
        )
        self._pool = WorkerPool(config, max_workers, self._poller)
        self._queue: deque[Job] = deque()
        self._failed_starts = 0
        self._closing = False
        self._stop_deadline = float("inf")
        self._forks_next_look = float("inf")
        self._commands = CommandQueue()
        self._desk = LeaseDesk(self._commands.put, shared=exchange.is_supported())
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zfast-hub", daemon=True)
        self._thread.start()
        # Else the end of the interpreter would stop the thread in the middle of its work.
        atexit.register(self.abort)

    # ---- any thread --------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job; ``job.on_done`` will be called whatever happens."""
        self._command(lambda: self._enqueue(job))

    def cancel_pending(self) -> None:
        """Take back every job that no worker has started."""
        self._command(self._cancel_queue)

    def close(self) -> None:
        """Take back what is queued, wait for what runs, stop the workers. Idempotent."""
        self._command(self._begin_closing)
        self._join()

    def abort(self) -> None:
        """Take back what is queued, kill what runs. Idempotent; called at exit if need be."""
        if self._pid == os.getpid():  # a fork that ends leaves its parent's workers alone
            self._command(self._kill_all)
            self._join()

    def _join(self) -> None:
        self._finished.wait()
        self._thread.join()
        atexit.unregister(self.abort)

    @property
    def worker_pids(self) -> list[int]:
        """Pids of the workers that live, for tests and statistics."""
        return [worker.process.pid for worker in self._pool]

    @property
    def handover(self) -> Handover:
        """Packs payloads of the driver for its workers. Threads: any."""
        return self._desk.handover

    @property
    def leases(self) -> LeaseTable:
        """Who may read what, for tests and statistics."""
        return self._desk.table

    def _command(self, command: Command) -> None:
        if self._pid != os.getpid():
            raise ConfigError(
                f"the hub belongs to process {self._pid}, this is its fork {os.getpid()}",
                hint="submit tasks in the process that runs the flow",
            )
        self._commands.put(command)

    # ---- the hub's thread --------------------------------------------------------------

    def _run(self) -> None:
        self._socket = HubSocket(self._poller)
        self._poller.register(self._commands.fd, zmq.POLLIN)
        error: WorkerError | None = None
        try:
            while not (self._closing and not self._pool):
                self._poller.poll(self._poll_timeout_ms())
                self._turn()
        except BaseException as failure:
            logger.exception("the hub failed; its jobs fail with it")
            error = WorkerError(f"the hub failed: {failure!r}", hint="see the log for the cause")
        finally:
            self._end(error or JobCancelledError("the task runner was closed"))

    def _turn(self) -> None:
        self._commands.run()
        self._desk.serve()
        self._receive()
        for worker in self._pool.bury():
            self._mourn(worker)
        self._end_leases()
        self._dispatch()
        if self._closing:
            self._stop_idle_workers()

    def _end(self, error: WorkerError) -> None:
        # The folder first: should this process be killed now, the workers remove it.
        self._folder.remove()
        self._pool.kill()
        for worker in self._pool:
            worker.release()
            worker.settle(error)
        for worker in self._pool.take_survived():
            if worker.children_gone:  # else somebody may read on, and its leases stay
                self._desk.end_worker(worker.routing_id, worker.process.pid)
            worker.close_lifeline()
        self._fail_queue(error)
        self._desk.close()
        self._socket.close()
        self._closing = True
        # Results outlive the hub: from now on, whoever lets go of one sees to its lease.
        self._commands.finish()
        self._finished.set()

    def _poll_timeout_ms(self) -> int | None:
        until = min(self._pool.next_look, self._stop_deadline, self._forks_next_look)
        if until == float("inf"):
            return None
        return int(max(0.0, until - time.monotonic()) * 1000) + 1

    def _enqueue(self, job: Job) -> None:
        if self._closing:
            job.settle(JobCancelledError("the task runner is closed"))
        else:
            self._queue.append(job)

    def _cancel_queue(self) -> None:
        self._fail_queue(JobCancelledError("the task run was cancelled before it started"))

    def _fail_queue(self, error: WorkerError) -> None:
        while self._queue:
            self._queue.popleft().settle(error)

    def _begin_closing(self) -> None:
        if not self._closing:
            self._closing = True
            self._fail_queue(JobCancelledError("the task runner was closed before it started"))

    def _kill_all(self) -> None:
        self._begin_closing()
        for worker in self._pool:
            worker.settle(WorkerDiedError("the task was interrupted: its runner was aborted"))
        self._pool.kill()

    # ---- workers -----------------------------------------------------------------------

    def _dispatch(self) -> None:
        idle = self._pool.idle
        while self._queue and idle:
            self._give(idle.pop(), self._queue.popleft())
        try:
            for _ in range(self._pool.missing(len(self._queue))):
                worker = self._pool.start_worker()
                self._desk.admit(worker.routing_id, worker.process.pid)
                # Bound only now: from here on there is a worker to remove the socket if we die.
                if not self._socket.is_bound:
                    self._socket.bind(self._folder.endpoint)
                    self._desk.open(self._segment_socket, self._poller)
        except OSError as error:  # zmq.ZMQError is not one, and is the hub's failure
            self._fail_queue(WorkerStartError(f"cannot start a worker process: {error.strerror}"))

    def _give(self, worker: WorkerProcess, job: Job) -> None:
        worker.job = job
        if len(worker.blobs) >= MAX_BLOBS:
            worker.blobs.clear()
            self._socket.send(worker.routing_id, Forget())
        for blob in (job.code, job.context):
            if blob.digest not in worker.blobs:
                worker.blobs.add(blob.digest)
                self._socket.send(worker.routing_id, Keep(blob.digest), [blob.data])
        counts, shared, buffers = join_parcels(job.parcels)
        run = Run(job.job_id, job.code.digest, job.context.digest, counts, shared)
        self._desk.grant(worker.routing_id, run)
        self._socket.send(worker.routing_id, run, buffers)

    def _receive(self) -> None:
        while True:
            try:
                received = self._socket.receive()
                if received is None:
                    return
                routing_id, message, buffers = received
                worker = self._pool.get(routing_id)
                if worker is None:
                    raise ProtocolError(f"a message from {routing_id!r}, not a worker")
                self._handle(worker, message, buffers)
            except ProtocolError as error:
                logger.warning("message dropped: %s", error)

    def _handle(
        self, worker: WorkerProcess, message: ControlMessage, buffers: list[memoryview]
    ) -> None:
        job = worker.job
        if isinstance(message, Note):
            try:
                self._on_note(message.job_id, message.topic, buffers[0])
            except Exception:
                logger.exception("a note from worker %s was not delivered", worker.process.pid)
        elif isinstance(message, Ready):
            if message.protocol_version != PROTOCOL_VERSION:
                raise ProtocolError(f"worker protocol {message.protocol_version} is not ours")
            worker.ready = True
            self._failed_starts = 0
        elif isinstance(message, Release):
            self._desk.release(worker.routing_id, message.keys)
        elif isinstance(message, Gone):
            self._desk.remove_segments(worker.routing_id, message.segment_ids)
        elif isinstance(message, (Done, Failed)) and job and message.job_id == job.job_id:
            worker.job = None
            job.settle(self._outcome(worker, message, buffers))
        else:
            raise ProtocolError(f"unexpected {type(message).__name__} from {worker.process.pid}")

    def _outcome(
        self, worker: WorkerProcess, message: Done | Failed, buffers: list[memoryview]
    ) -> Outcome:
        if isinstance(message, Failed):
            return JobFailedError(message.error_type, message.message, message.traceback)
        try:
            return self._desk.receive(worker.routing_id, message, buffers)
        except ProtocolError as error:
            logger.error("worker %s is killed for its result: %s", worker.process.pid, error)
            worker.kill()
            return WorkerError(f"the result was refused: {error.message}")

    def _end_leases(self) -> None:
        """Carry out, once a turn, what the ends of leases lead to."""
        for worker in self._pool.take_bereaved():
            self._desk.end_worker(worker.routing_id, worker.process.pid)
        self._forks_next_look = next_settling()
        for routing_id, message in self._desk.take_messages(w.routing_id for w in self._pool):
            self._socket.send(routing_id, message)

    def _mourn(self, worker: WorkerProcess) -> None:
        worker.settle(
            WorkerDiedError(
                f"the worker process {worker.process.pid} died while it ran the task: "
                f"{worker.cause_of_death}",
                hint="is it short of memory, or did the task end its own process?",
            )
        )
        if worker.ready or self._closing:
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._fail_queue(
                WorkerStartError(
                    f"{self._failed_starts} worker processes in a row ended before they were "
                    f"ready; the last {worker.cause_of_death}",
                    hint="their standard error says why",
                )
            )
            self._failed_starts = 0

    def _stop_idle_workers(self) -> None:
        if self._stop_deadline == float("inf") and not any(worker.job for worker in self._pool):
            self._stop_deadline = time.monotonic() + STOP_GRACE_S
        overdue = time.monotonic() >= self._stop_deadline
        for worker in self._pool:
            if overdue or not worker.ready:
                worker.kill()
            elif worker.idle:
                worker.stopping = True
                self._socket.send(worker.routing_id, Stop())
        if overdue:
            self._stop_deadline = float("inf")  # killed: their deaths wake the hub
