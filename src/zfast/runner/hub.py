"""The hub: one thread in the driver that owns the workers, their socket and the jobs."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

import zmq

from zfast.errors import ConfigError, WorkerDiedError, WorkerError
from zfast.runner.commands import Command, CommandQueue
from zfast.runner.dispatcher import Dispatcher
from zfast.runner.equipment import equip, invite
from zfast.runner.hub_socket import HubSocket
from zfast.runner.job import Job, JobCancelledError
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.policy import Policy
from zfast.runner.pool import WorkerPool
from zfast.runner.reception import Reception
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_hosts import RemoteHosts
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.runner.runtime_folder import HUB, RuntimeFolder
from zfast.runner.staffing import Staffing
from zfast.runner.statistics import ProcessStatistics, collect
from zfast.runner.status import describe_hub
from zfast.sharing import exchange
from zfast.sharing.handover import Handover
from zfast.sharing.lease_table import LeaseTable
from zfast.sharing.segments import next_settling

logger = logging.getLogger("zfast.runner")

#: A poller takes no more milliseconds than fit into 32 bits.
MAX_WAIT_S = 86_400.0


class Hub:
    """Runs jobs on warm worker processes.

    Workers are started when there are more jobs than workers, and kept until they are idle for
    long, or until ``close``. A job whose worker dies is run again by another.

    Args:
        policy: How many workers, how long they live, how often they may die.
        executor: ``module:name`` of what runs jobs in a worker, see ``zfast.runner.worker``.
        environment: Variables for the workers, on top of this process's.
        on_note: Called on the hub's thread with the job id, topic and bytes of each note.
        remote: Where workers of other hosts may join; None for nowhere.
        versions: Of packages that those must have too.

    Raises:
        ConfigError, TransportError: Workers of other hosts could not join there.

    Threads: ``submit``, ``cancel_pending`` and ``close`` from any.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        executor: str,
        environment: Mapping[str, str],
        on_note: Callable[[bytes, str, memoryview], None],
        remote: RemoteEndpoint | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        if remote is None and not policy.max_workers:
            raise ConfigError("max_workers is 0, and no other host may join: nobody could work")
        self._pid = os.getpid()
        self._policy = policy
        self._poller = zmq.Poller()
        self._commands = CommandQueue()
        self._folder = RuntimeFolder(HUB)
        self._segment_socket = self._folder.path / exchange.FILE_NAME
        config = equip(self._folder, policy, executor, environment)
        self._desk = LeaseDesk(self._commands.put, shared=exchange.is_supported())
        self._data = RemoteData(self._commands.put, self._desk.table.has_segment)
        self._socket = HubSocket(self._poller)
        self._remote: RemoteHosts | None = None
        try:
            if remote is not None:
                self._remote = RemoteHosts(
                    remote,
                    policy,
                    self._data,
                    invite(config, policy, versions or {}),
                    self._poller,
                    lambda: self._commands.put(lambda: None),
                    self._describe,
                )
        except BaseException:
            self._folder.remove()
            self._socket.close()
            raise
        self._pool = WorkerPool(
            config,
            policy,
            self._socket.send,
            self._poller,
            lambda worker: self._dispatcher.is_busy(worker),
        )
        self._dispatcher = Dispatcher(
            policy, self._desk, self._data, lambda: self._staffing.workers
        )
        self._staffing = Staffing(
            policy, self._pool, self._dispatcher, self._desk, self._remote, self._open_sockets
        )
        self._reception = Reception(
            self._socket,
            self._pool,
            self._remote,
            self._dispatcher,
            self._desk,
            self._data,
            self._staffing,
            on_note,
            self._describe,
        )
        self._closing = False
        self._forks_next_look = float("inf")
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zfast-hub", daemon=True)
        self._thread.start()
        # Else the end of the interpreter would stop the thread in the middle of its work.
        atexit.register(self.abort)

    # ---- any thread --------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job; ``job.on_done`` will be called whatever happens."""
        self._command(lambda: self._submit(job))

    def cancel_pending(self) -> None:
        """Take back every job that no worker has started."""
        error = JobCancelledError("the task run was cancelled before it started")
        self._command(lambda: self._dispatcher.cancel(error, replays=True))

    def call(self, function: Callable[[], None]) -> None:
        """Have something called on the hub's thread; by the caller itself once the hub has ended.

        It must not block.
        """
        self._command(function)

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
    def endpoint(self) -> str | None:
        """Where workers of other hosts may join; None for nowhere."""
        return self._remote.endpoint if self._remote is not None else None

    @property
    def handover(self) -> Handover:
        """Packs payloads of the driver for its workers. Threads: any."""
        return self._desk.handover

    @property
    def leases(self) -> LeaseTable:
        """Who may read what, for tests and statistics."""
        return self._desk.table

    def statistics(self, take: Callable[[list[ProcessStatistics]], None]) -> None:
        """Call ``take`` on the hub's thread with how its processes fare; never after its end."""

        def tell() -> None:
            if not self._finished.is_set():
                take(collect(self._pool, self._dispatcher, self._desk.table))

        self._command(tell)

    def _command(self, command: Command) -> None:
        if self._pid != os.getpid():
            raise ConfigError(
                f"the hub belongs to process {self._pid}, this is its fork {os.getpid()}",
                hint="submit tasks in the process that runs the flow",
            )
        self._commands.put(command)

    # ---- the hub's thread --------------------------------------------------------------

    def _run(self) -> None:
        self._poller.register(self._commands.fd, zmq.POLLIN)
        error: WorkerError | None = None
        try:
            if self._remote is not None:  # there may never be a worker on this host
                self._open_sockets()
            while not self._is_done:
                self._turn()
                self._poller.poll(self._poll_timeout_ms())
        except BaseException as failure:
            logger.exception("the hub failed; its jobs fail with it")
            error = WorkerError(f"the hub failed: {failure!r}", hint="see the log for the cause")
        finally:
            self._end(error or JobCancelledError("the task runner was closed"))

    @property
    def _is_done(self) -> bool:
        busy = self._pool or self._dispatcher.n_jobs or self._data.n_coming
        return self._closing and not busy

    def _turn(self) -> None:
        self._commands.run()
        self._desk.serve()
        self._reception.receive()
        for worker in self._pool.bury():
            self._staffing.mourn(worker, closing=self._closing)
        for lost in self._remote.take_dead() if self._remote is not None else ():
            self._dispatcher.mourn(lost)
        self._pool.look_after()
        self._end_leases()
        self._dispatcher.dispatch()
        self._staffing.start_missing(closing=self._closing)
        self._staffing.stop_leaving(closing=self._closing)
        if self._closing and not self._dispatcher.n_jobs:
            self._data.bring_leased()
        if self._remote is not None:
            self._remote.turn(waiting=self._dispatcher.n_queued > 0)

    def _end(self, error: WorkerError) -> None:
        try:
            self._dismantle(error)
        finally:  # whoever waits for the end does not wait for ever
            self._closing = True
            self._data.close()
            # Results outlive the hub: from now on, whoever lets go of one sees to its lease.
            self._commands.finish()
            self._finished.set()

    def _dismantle(self, error: WorkerError) -> None:
        # The folder first: should this process be killed now, the workers remove it.
        self._folder.remove()
        self._pool.kill()
        for worker in self._pool:
            worker.release()
        self._dispatcher.fail_all(error)
        for worker in self._pool.take_survived():
            if worker.children_gone:  # else somebody may read on, and its leases stay
                self._desk.end_worker(worker.routing_id, worker.process.pid)
            worker.close()
        self._desk.close()
        self._socket.close()
        if self._remote is not None:
            self._remote.close()

    def _poll_timeout_ms(self) -> int | None:
        until = min(
            self._pool.next_look,
            self._dispatcher.next_recall,
            self._forks_next_look,
            self._staffing.next_start,
            self._remote.next_turn if self._remote is not None else float("inf"),
        )
        if self._is_done:
            return 0
        if until == float("inf"):
            return None
        return int(min(max(0.0, until - time.monotonic()), MAX_WAIT_S) * 1000) + 1

    def _submit(self, job: Job) -> None:
        self._staffing.job_has_come()
        if self._closing:
            job.settle(JobCancelledError("the task runner is closed"))
        elif self._staffing.broken is not None:
            job.settle(self._staffing.broken)
        else:
            self._dispatcher.submit(job)

    def _begin_closing(self) -> None:
        if not self._closing:
            self._closing = True
            error = JobCancelledError("the task runner was closed before it started")
            self._dispatcher.cancel(error, replays=False)

    def _kill_all(self) -> None:
        self._begin_closing()
        self._pool.kill()  # before it is seen what they have begun
        self._dispatcher.fail_all(
            WorkerDiedError("the task was interrupted: its runner was aborted")
        )
        self._data.close()

    def _end_leases(self) -> None:
        """Carry out, once a turn, what the ends of leases lead to."""
        for worker in self._pool.take_bereaved():
            self._desk.end_worker(worker.routing_id, worker.process.pid)
        self._forks_next_look = next_settling()
        for routing_id, message in self._desk.take_messages(w.routing_id for w in self._pool):
            self._socket.send(routing_id, message)

    def _open_sockets(self) -> None:
        if not self._socket.is_bound:
            self._socket.bind(self._folder.endpoint)
            self._desk.open(self._segment_socket, self._poller)

    def _describe(self) -> bytes:
        return describe_hub(
            self._pid,
            self.endpoint,
            self._policy.lease_s,
            self._staffing.workers,
            [host.name for host in self._remote.hosts] if self._remote is not None else [],
            self._dispatcher,
            self._desk,
            self._data,
        )
