"""Peer processes: started, commanded a line at a time, stopped by their pid."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0


class PeerError(RuntimeError):
    """A peer process failed, or did not answer in time."""


def python_command(module: str, *arguments: object) -> list[str]:
    """Return the command of one of `bench.peers`' modules."""
    return [sys.executable, "-m", f"bench.peers.{module}", *map(str, arguments)]


class PeerProcess:
    """A process that answers each line on its stdin with one line of JSON on its stdout.

    It speaks first, to say that it is ready, and ends when its stdin does. It leads a process
    group of its own: whatever it leaves behind goes with it.

    Attributes:
        hello: What it said of itself when it was ready.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it is ready."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        search_path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
                **(env or {}),
            },
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        try:
            self.hello = self.answer(START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def ask(self, timeout: float = 120.0, **command: Any) -> dict[str, Any]:
        """Command it, and wait for the answer."""
        self.command(**command)
        return self.answer(timeout)

    def command(self, **command: Any) -> None:
        """Command it; `answer` waits for what comes of it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._describe_end()) from None

    def answer(self, timeout: float = 120.0) -> dict[str, Any]:
        """Wait for its next line."""
        assert self._process.stdout is not None
        if not self._selector.select(timeout):
            raise PeerError(self._describe(f"did not answer in {timeout:.0f} s"))
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._describe_end())
        return dict(json.loads(line))

    def close(self) -> None:
        """Let it end, or end it."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        stop_group(process.pid)
        self._selector.close()
        process.stdout.close()
        self._log.close()

    def _describe_end(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        return self._describe(f"has ended with status {self._process.returncode}")

    def _describe(self, what: str) -> str:
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()[-15:]
        return "\n".join([f"the peer process {what}", *said])


def stop_group(pid: int) -> None:
    """End what is left of the process group of a process that was started here."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class Pair:
    """A sender and a receiver process; a round is timed by the sender, from first send to ack."""

    def __init__(
        self, receiver: Sequence[str], sender: Sequence[str], endpoints: Sequence[str]
    ) -> None:
        """Start both: the receiver binds `endpoints`, the sender connects to what it bound."""
        self._processes: list[PeerProcess] = []
        try:
            self._receiver = self._start([*receiver, *endpoints])
            bound = self._receiver.hello["endpoints"]
            self._sender = self._start([*sender, *bound])
        except BaseException:
            self.close()
            raise

    def _start(self, command: Sequence[str]) -> PeerProcess:
        process = PeerProcess(command)
        self._processes.append(process)
        return process

    def round(self, **command: Any) -> dict[str, float]:
        """Run one round and check that what was received is what was sent.

        Returns:
            The seconds that it took, and what else both report, added up.
        """
        self._receiver.command(**command)
        sent = self._sender.ask(**command)
        received = self._receiver.answer()
        if sent["checksum"] != received["checksum"]:
            raise PeerError(f"sent {sent['checksum']}, received {received['checksum']}")
        both = {
            name: sent[name] + received[name]
            for name in ("peak_nbytes", "minor_faults")
            if sent.get(name) is not None and received.get(name) is not None
        }
        return {"seconds": sent["seconds"], **both}

    def close(self) -> None:
        """End both."""
        for process in reversed(self._processes):
            process.close()
