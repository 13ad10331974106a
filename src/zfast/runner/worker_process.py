"""One local worker process, as its hub sees it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfast.runner.job import Job, Outcome

# Set first of all, so that neither a module named like one of ours in the working folder nor a
# relative entry can come before what the driver imports.
_BOOTSTRAP = (
    "import sys; sys.path[:] = {sys_path!r}; sys.argv[:] = {argv!r}; "
    "from zfast.runner.worker import main; main({config!r})"
)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What every worker of a hub is started with.

    Attributes:
        endpoint: The hub's.
        runtime_folder: Removed by the worker when the driver dies.
        executor: ``module:name`` of the callable that makes the worker's executor.
        environment: Variables set on top of the driver's.
        segment_socket: Where the hub exchanges segments of shared memory; None where it cannot.
        sys_path: The driver's module search path.
    """

    endpoint: str
    runtime_folder: str
    executor: str
    environment: Mapping[str, str]
    segment_socket: str | None
    sys_path: Sequence[str]


@dataclass(eq=False)
class WorkerProcess:
    """A worker and what it is doing. Threads: the hub's only.

    Attributes:
        pidfd: Readable once it is dead; None where the system has none.
        lifeline: A pipe whose other end is held by the worker and by every process that it forked.
    """

    routing_id: bytes
    process: subprocess.Popen[bytes]
    pidfd: int | None
    lifeline: int
    ready: bool = False
    stopping: bool = False
    job: Job | None = None
    blobs: set[bytes] = field(default_factory=set)

    @classmethod
    def start(cls, config: WorkerConfig, routing_id: bytes) -> WorkerProcess:
        """Start a worker; it says Ready when its imports are done.

        Raises:
            OSError: The process cannot be started.
        """
        lifeline, worker_end = os.pipe()
        worker = {
            "endpoint": config.endpoint,
            "routing_id": routing_id.decode(),
            "parent_pid": os.getpid(),
            "runtime_folder": config.runtime_folder,
            "executor": config.executor,
            "segment_socket": config.segment_socket,
            "lifeline": worker_end,
            "main_file": getattr(sys.modules.get("__main__"), "__file__", None),
        }
        code = _BOOTSTRAP.format(
            sys_path=list(config.sys_path), argv=sys.argv, config=json.dumps(worker)
        )
        warning_options = [f"-W{option}" for option in sys.warnoptions]
        try:
            process = subprocess.Popen(
                [sys.executable, *warning_options, "-c", code],
                env={**os.environ, **config.environment},
                stdin=subprocess.DEVNULL,
                pass_fds=[worker_end],
                # Ctrl-C is the driver's to handle: it ends its workers in order.
                start_new_session=True,
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(worker_end)
        pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        return cls(routing_id, process, pidfd, lifeline)

    @property
    def idle(self) -> bool:
        """True when it can take a job."""
        return self.ready and self.job is None and not self.stopping

    @property
    def exited(self) -> bool:
        """True once the process is dead; reaps it."""
        return self.process.poll() is not None

    @property
    def children_gone(self) -> bool:
        """True once it and every process that it forked have ended or run another program."""
        poll = select.poll()
        poll.register(self.lifeline, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def cause_of_death(self) -> str:
        """How it ended: ``killed by SIGKILL`` or ``exited with status 1``."""
        code = self.process.returncode
        if code is not None and code < 0:
            try:
                return f"killed by {signal.Signals(-code).name}"
            except ValueError:
                return f"killed by signal {-code}"
        return f"exited with status {code}"

    def settle(self, outcome: Outcome) -> None:
        """End the job it has, if it has one."""
        if self.job is not None:
            job, self.job = self.job, None
            job.settle(outcome)

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()

    def release(self) -> None:
        """Give back its pidfd and its entry in the process table."""
        self.process.wait()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def close_lifeline(self) -> None:
        """Give back the lifeline."""
        os.close(self.lifeline)
