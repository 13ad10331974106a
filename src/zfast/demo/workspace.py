"""The demo's temporary folder and processes, none of which outlives the demo."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from zfast.demo import sweeper
from zfast.errors import ZfastError

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG_TAIL_LINES = 15
_LOG_ERRORS = 5
_STOP_TIMEOUT_S = 10


class Workspace:
    """A temporary folder and the processes that work in it.

    On leaving, and also after ``kill -9`` of this process, the processes and all their children
    in the same process group are killed and the folder is removed.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zfast-demo-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._sweeper = subprocess.Popen(
                [sys.executable, "-I", sweeper.__file__, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C must not reach it.
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own, its output in ``name.log``."""
        with self._log_path(name).open("wb") as log:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                # Not the user's folder: Prefect would take settings from files there.
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        self._tell_sweeper(f"+{process.pid}")
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and what is left of its group."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pass
        self._kill(process)
        self._tell_sweeper(f"-{process.pid}")
        self._processes.remove(process)

    def log_tail(self, name: str) -> str:
        """The last lines of a process's output."""
        return "\n".join(self._log_lines(name)[-_LOG_TAIL_LINES:]) or "it printed nothing"

    def log_errors(self, name: str) -> str:
        """The first errors that Prefect logged in a process: what follows comes of them."""
        lines = self._log_lines(name)
        errors = [line for line in lines if "| ERROR " in line or "| CRITICAL " in line]
        return "\n".join(errors[:_LOG_ERRORS]) or self.log_tail(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sweeper.stdin is not None
        # First of all, so that a second Ctrl-C in here changes nothing.
        self._sweeper.stdin.close()
        for process in self._processes:
            self._kill(process)
        self._sweeper.wait()

    def _log_lines(self, name: str) -> list[str]:
        return self._log_path(name).read_text(errors="replace").strip().splitlines()

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _tell_sweeper(self, line: str) -> None:
        assert self._sweeper.stdin is not None
        try:
            self._sweeper.stdin.write(line.encode() + b"\n")
            self._sweeper.stdin.flush()
        except OSError as error:
            raise ZfastError(
                "the process that cleans up after the demo is gone", detail=str(error)
            ) from error

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()
