"""One local worker process, as its hub sees it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.last_words import LastWords, StandardErrors
from zfast.runner.oom import n_oom_kills
from zfast.runner.slate import BLANK, Slate
from zfast.runner.vitals import Vitals
from zfast.runner.worker_handle import WorkerHandle
from zfast.security.held_secrets import environment_for_children

#: Sends a message to the worker of a routing id.
Transmit = Callable[[bytes, ControlMessage, Buffers], None]

# Set first of all, so that neither a module named like one of ours in the working folder nor a
# relative entry can come before what the driver imports.
_BOOTSTRAP = (
    "import sys; sys.path[:] = {sys_path!r}; sys.argv[:] = {argv!r}; "
    "from zfast.runner.worker import main; main({config!r})"
)


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What every worker of a hub is started with, the last ones as the first.

    Attributes:
        endpoint: The hub's.
        runtime_folder: Removed by the worker when the driver dies.
        executor: ``module:name`` of the callable that makes the worker's executor.
        environment: Variables set on top of those inherited.
        segment_socket: Where the hub exchanges segments of shared memory; None where it cannot.
        sys_path: The driver's module search path.
        beat_s: How often a worker's I/O thread shows that it lives.
        initializer: A file with a pickled ``(function, arguments)`` to call first; None for none.
        argv: The driver's command line.
        main_file: The driver's main module; None if it is no file.
        inherited: This process's variables when the first worker was to be started.
        working_folder: This process's at that time; None if it had been removed.
    """

    endpoint: str
    runtime_folder: str
    executor: str
    environment: Mapping[str, str]
    segment_socket: str | None
    sys_path: Sequence[str]
    beat_s: float
    initializer: str | None
    argv: Sequence[str]
    main_file: str | None
    inherited: Mapping[str, str] = field(default_factory=environment_for_children)
    working_folder: str | None = field(default_factory=_working_folder)


def main_file() -> str | None:
    """The file of this process's main module, if it is one."""
    return getattr(sys.modules.get("__main__"), "__file__", None)


@dataclass(eq=False)
class WorkerProcess(WorkerHandle):
    """A process that this one started. Threads: the hub's only.

    Attributes:
        transmit: How messages reach it.
        pidfd: Readable once it is dead; None where the system has none.
        lifeline: A pipe whose other end is held by the worker and by every process that it forked.
        slate: What it notes about itself.
        verdict: Why the hub killed it; None if the hub did not.
    """

    transmit: Transmit
    process: subprocess.Popen[bytes]
    pidfd: int | None
    lifeline: int
    slate: Slate
    vitals: Vitals
    last_words: LastWords
    oom_kills_before: int | None = None
    verdict: str | None = None

    is_local: ClassVar[bool] = True

    @classmethod
    def start(
        cls,
        config: WorkerConfig,
        routing_id: bytes,
        transmit: Transmit,
        errors: StandardErrors,
        now: float,
    ) -> WorkerProcess:
        """Start a worker; it says Ready when its imports are done.

        Raises:
            OSError: The process cannot be started.
        """
        with ExitStack() as on_failure, ExitStack() as passed_on:
            folder = Path(config.runtime_folder)
            slate_fd = _nameless_file(folder, BLANK)
            passed_on.callback(os.close, slate_fd)
            slate = Slate(slate_fd)
            on_failure.callback(slate.close)
            lifeline, worker_end = os.pipe()
            on_failure.callback(os.close, lifeline)
            passed_on.callback(os.close, worker_end)
            errors_end, worker_errors = os.pipe()
            on_failure.callback(os.close, errors_end)
            passed_on.callback(os.close, worker_errors)
            settings = {
                "endpoint": config.endpoint,
                "routing_id": routing_id.decode(),
                "parent_pid": os.getpid(),
                "runtime_folder": config.runtime_folder,
                "executor": config.executor,
                "segment_socket": config.segment_socket,
                "lifeline": worker_end,
                "slate": slate_fd,
                "beat_s": config.beat_s,
                "initializer": config.initializer,
                "main_file": config.main_file,
            }
            code = _BOOTSTRAP.format(
                sys_path=list(config.sys_path), argv=list(config.argv), config=json.dumps(settings)
            )
            # A command line has 128 KiB at most, and a driver's arguments may be more.
            code_fd = _nameless_file(folder, code.encode())
            passed_on.callback(os.close, code_fd)
            run = f"import os; exec(os.fdopen({code_fd}, encoding='utf-8').read())"
            warning_options = [f"-W{option}" for option in sys.warnoptions]
            process = subprocess.Popen(
                [sys.executable, *warning_options, "-c", run],
                env={
                    **_terminal_environment(),
                    **config.inherited,
                    **config.environment,
                },
                cwd=_to_be_entered(config.working_folder),
                stdin=subprocess.DEVNULL,
                stderr=worker_errors,
                pass_fds=[worker_end, slate_fd, code_fd],
                # Ctrl-C is the driver's to handle: it ends its workers in order.
                start_new_session=True,
            )
            on_failure.callback(process.wait)
            on_failure.callback(process.kill)
            words = errors.take_in(errors_end)
            worker = cls(
                routing_id,
                now,
                transmit,
                process,
                _open_pidfd(process.pid),
                lifeline,
                slate,
                Vitals(process.pid, lambda: slate.beats),
                words,
                oom_kills_before=n_oom_kills(),
            )
            on_failure.pop_all()
            return worker

    def send(self, message: ControlMessage, buffers: Buffers = ()) -> None:
        """Send it a message over the hub's socket."""
        self.transmit(self.routing_id, message, buffers)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the worker process {self.pid}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def begun(self) -> int:
        """The serial of the last job that it has begun, from its slate."""
        return self.slate.begun

    @property
    def words(self) -> str:
        """The last lines of its standard error."""
        return self.last_words.text()

    @property
    def available(self) -> bool:
        """Whether it may be given jobs."""
        return self.ready and not self.leaving and not self.vitals.is_stopped

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
        """How it ended, such as ``killed by SIGKILL``, and what may say why."""
        parts = [self.verdict or _describe(self.process.returncode)]
        if self.process.returncode == -signal.SIGKILL and self.verdict is None:
            kills = n_oom_kills()
            if kills is not None and kills > (self.oom_kills_before or 0):
                parts.append("the kernel's out-of-memory killer was at work meanwhile")
            if self.vitals.private_nbytes:
                parts.append(f"it had {self.vitals.private_nbytes >> 20} MiB when last seen")
        return "; ".join(parts)

    def kill(self, verdict: str | None = None) -> None:
        """End it at once, and what it has started; ``verdict`` says why.

        What it started and gave a process group of its own goes on.
        """
        self.verdict = self.verdict or verdict
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)  # it leads its group since before its first code

    def release(self) -> None:
        """Give back its pidfd and its entry in the process table."""
        self.process.wait()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def close(self) -> None:
        """Give back the lifeline and the slate."""
        os.close(self.lifeline)
        self.slate.close()


def _nameless_file(folder: Path, content: bytes) -> int:
    """A descriptor of a new file, at its start; the file vanishes with its last descriptor."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(content)
        file.seek(0)
        return os.dup(file.fileno())


def _open_pidfd(pid: int) -> int | None:
    """None where the kernel has none, or a filter of system calls refuses it."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _describe(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        try:
            return f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"killed by signal {-returncode}"
    return f"exited with status {returncode}"


def _to_be_entered(folder: str | None) -> str | None:
    """The folder; None for the one that this process is in, also where there is no way to it."""
    if folder is None or folder == _working_folder() or not os.access(folder, os.X_OK):
        return None
    return folder


def _terminal_environment() -> dict[str, str]:
    """Worker's standard error goes through a pipe, whose other end may be a terminal."""
    return {"TTY_COMPATIBLE": "1"} if os.isatty(2) else {}
