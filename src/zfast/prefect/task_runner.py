"""ZfastTaskRunner: Prefect's tasks on warm worker processes."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prefect.exceptions import Pause
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.task_runners import TaskRunner

from zfast.addresses import as_told_to_others
from zfast.codec import encode
from zfast.errors import ZfastError
from zfast.prefect.call import make_call
from zfast.prefect.crashes import active_flow_run_id
from zfast.prefect.future import ZfastFuture
from zfast.prefect.making import Making
from zfast.prefect.references import make_references
from zfast.prefect.reporting import Reporter
from zfast.prefect.runner_settings import make_policy, make_remote
from zfast.prefect.shipping import OneMap, Shipper, child_environment, shared_versions
from zfast.prefect.state_tap import process_tap
from zfast.prefect.submission import Submission, crash_unsent
from zfast.prefect.transactions import TransactionCheck
from zfast.prefect.worker_vitals import WorkerVitals
from zfast.prefect.workshop import Workshop
from zfast.runner.hub import Hub
from zfast.runner.policy import check_whole_number
from zfast.security.server_security import ServerSecurity

if TYPE_CHECKING:
    from prefect.client.schemas.objects import RunInput
    from prefect.tasks import Task
    from typing_extensions import Self


#: Ends of task runs that can be told of at one time; the next waits while callbacks block.
MAX_COMPLETIONS = 32


class ZfastTaskRunner(TaskRunner[ZfastFuture]):
    """Runs task runs in warm local worker processes.

    Workers start with the first submit and live as long as the flow run; each is given a task's
    code and the flow run's context once. Parameters are snapshotted before ``submit`` returns, into
    memory that workers share. Results stay where they were made, and tasks and the flow read them
    there. When a worker dies, another takes its place and runs the task run again, under the same
    id; a result that was handed over stays. Side effects of the first attempt are not undone.

    Args:
        max_workers: At most so many processes; by default Prefect's setting
            ``tasks.runner.process_pool_max_workers``, else the number of processors.
        min_workers: So many are started with the first submit, and kept.
        spares: So many more wait, their imports done, to take over from one that dies.
        idle_timeout_s: A worker that is not needed for so long is stopped.
        max_tasks_per_worker: After so many task runs a worker is replaced.
        max_worker_nbytes: A worker whose memory, without what it shares, has grown past it is
            replaced after the task run it is at.
        max_worker_deaths: A task run whose workers died so often ends as Crashed.
        lease_s: A worker that was stopped, or hangs without computing, for so long is killed.
        initializer: Called in each worker before its first task run, with ``initargs``.
        endpoint: Where workers of other hosts may join, started there by ``zfast worker``:
            ``tcp://host:port``. With it ``max_workers`` may be 0: none on this host.
        security: Who may join over tcp, such as ``ServerSecurity.load()``.
        insecure: Allow tcp of the loopback interface that nothing guards.

    Raises:
        ConfigError: A setting is out of its range, the initializer cannot be pickled, or the
            endpoint is malformed or unprotected.

    Threads: ``submit`` from any. Not usable in a forked child.

    Example:
        >>> from prefect import flow
        >>> @flow(task_runner=ZfastTaskRunner(max_workers=4))
        ... def my_flow(): ...
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        min_workers: int = 0,
        spares: int = 1,
        idle_timeout_s: float = 60.0,
        max_tasks_per_worker: int | None = None,
        max_worker_nbytes: int | None = None,
        max_worker_deaths: int = 3,
        lease_s: float = 60.0,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        endpoint: str | None = None,
        security: ServerSecurity | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_whole_number("max_workers", max_workers, 1 if endpoint is None else 0, optional=True)
        check_whole_number("min_workers", min_workers, 0)
        self._settings: dict[str, Any] = {
            "max_workers": max_workers,
            "min_workers": min_workers,
            "spares": spares,
            "idle_timeout_s": idle_timeout_s,
            "max_tasks_per_worker": max_tasks_per_worker,
            "max_worker_nbytes": max_worker_nbytes,
            "max_worker_deaths": max_worker_deaths,
            "lease_s": lease_s,
            "initializer": initializer,
            "initargs": tuple(initargs),
        }
        self._joining: dict[str, Any] = {}
        if endpoint is not None or security is not None or insecure:
            self._joining = {"endpoint": endpoint, "security": security, "insecure": insecure}
        make_policy(self._settings)  # complains here and now
        make_remote(**self._joining)
        self._reset()
        #: Runners that are running: this one and its duplicates. Prefect cancels the original.
        self._family: weakref.WeakSet[ZfastTaskRunner] = weakref.WeakSet()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._hub: Hub | None = None
        self._workshop: Workshop | None = None
        self._vitals: WorkerVitals | None = None
        self._shipper: Shipper | None = None
        self._reporter: Reporter | None = None
        self._transactions = TransactionCheck(self.logger)
        self._completions = concurrent.futures.ThreadPoolExecutor(
            MAX_COMPLETIONS, thread_name_prefix="zfast-completion"
        )

    @property
    def name(self) -> str:
        """The runner's name in Prefect's logs."""
        return "zfast"

    def duplicate(self) -> Self:
        """A runner with the same configuration, not started."""
        # Not through the constructor, which a subclass may have given other parameters.
        duplicate = type(self).__new__(type(self))
        duplicate.__dict__.update(self.__dict__)  # the family, too
        duplicate._started = False
        duplicate._reset()
        return duplicate

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZfastTaskRunner)
            and self._settings == other._settings
            and self._joining == other._joining
        )

    def __hash__(self) -> int:
        return id(self)

    def __getstate__(self) -> dict[str, Any]:
        # Prefect pickles a flow with its runner: only the configuration travels. A worker that
        # submits tasks has workers of its own: its driver's endpoint is taken, and its keys stay.
        settings = {**self._settings, "max_workers": self._settings["max_workers"] or None}
        return {"logger": self.logger, "_settings": settings, "_joining": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._started = False
        self._reset()
        self._family = weakref.WeakSet()

    def __enter__(self) -> Self:
        # Nothing is opened yet: Prefect enters a duplicate in every worker that hydrates a flow.
        super().__enter__()
        self._family.add(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._family.discard(self)
        # Ctrl-C, a termination signal, a cancelled flow: nobody waits for what still runs. A flow
        # that is suspended finds it done when it resumes.
        waits = exc_type is None or issubclass(exc_type, (Exception, Pause))
        try:
            if self._vitals is not None:
                self._vitals.close()
            if self._hub is not None and waits:
                self._hub.close()
        finally:  # the wait may be interrupted
            self._end()
            super().__exit__(exc_type, exc_value, traceback)

    def _end(self) -> None:
        """End what still runs, if anything does, and all that was opened."""
        if self._hub is not None and self._reporter is not None:
            self._hub.abort()
            self._completions.shutdown()
            if self._workshop is not None:
                self._workshop.close()
            self._reporter.close()
        self._reset()

    def cancel_all(self) -> None:
        """Take back every task run that no worker has started, of this runner's duplicates too."""
        for runner in list(self._family):
            if runner._hub is not None:
                runner._hub.cancel_pending()

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> ZfastFuture:
        """Submit a task run; returns at once.

        Args:
            task: The task. Its code is pickled now, and sent to a worker that does not have it.
            parameters: Its parameters, futures anywhere in them. They are copied now.
            wait_for: Futures that must end well before it starts.
            dependencies: Upstream task runs by parameter, for the API.

        Returns:
            A future that ends with the task run's final State. What cannot be pickled, or a
            worker's death, ends it as Crashed.

        Raises:
            RuntimeError: The runner is not started.
            ConfigError: A transaction is active here, and the task has hooks of transactions.
        """
        if not self._started:
            raise RuntimeError(
                "Task runner is not started: submit tasks in a flow, or in a with block of the "
                "runner"
            )
        from prefect._internal.uuid7 import uuid7

        self._transactions.check(task)
        workshop, shipper = self._start()
        future = ZfastFuture(uuid7(), workshop.flow_run_id)
        upstream: list[PrefectFuture[Any]] = []
        if isinstance(wait_for, OneMap) and wait_for.task is task:
            common = wait_for
        else:
            common = OneMap(task, wait_for)
        call = make_call(task, future.task_run_id, parameters, list(common), dependencies)
        try:
            common.code = common.code or shipper.ship_task(task)
            making = Making(
                workshop,
                task,
                future.task_run_id,
                common.code,
                context=shipper.ship_context(),
                call=workshop.hub.handover.snapshot(
                    encode(call, persistent_id=make_references(upstream)), common.copies
                ),
            )
        except ZfastError as error:
            message = f"Task {task.name!r} cannot be sent to a worker: {error}"
            crash_unsent(workshop, future, task, message, error)
            return future
        Submission(workshop, future, task, making, upstream).start()
        return future

    def map(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
    ) -> PrefectFutureList[ZfastFuture]:
        """Submit a task run for each item; what all of them share is pickled and copied once."""
        return super().map(task, parameters, OneMap(task, wait_for))

    def _start(self) -> tuple[Workshop, Shipper]:
        with self._lock:
            if self._workshop is None or self._shipper is None:
                self._reporter = Reporter()
                remote = make_remote(**self._joining)
                self._hub = Hub(
                    make_policy(self._settings),
                    executor="zfast.prefect.execution:TaskExecutor",
                    environment=child_environment(),
                    on_note=self._reporter.forward,
                    remote=remote,
                    versions=shared_versions() if remote is not None else None,
                )
                if self._hub.endpoint is not None:
                    told = as_told_to_others(self._hub.endpoint)
                    self.logger.info("Workers may join at %s", told)
                self._shipper = Shipper()
                self._workshop = Workshop(
                    self._hub, self._reporter, self._completions, active_flow_run_id()
                )
                if process_tap.is_active:
                    self._vitals = WorkerVitals(self._hub)
            return self._workshop, self._shipper
