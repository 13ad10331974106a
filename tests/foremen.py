"""Processes of ``zfast worker`` for tests, and what can be seen of them from outside."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hub_jobs import settled

TESTS = Path(__file__).parent
ZFAST = [sys.executable, "-c", "import sys; from zfast.cli import main; sys.exit(main())"]


def importing_tests() -> dict[str, str]:
    """The environment of a process that imports what tests do: the zfast under test, and them."""
    path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def zfast(*arguments):
    """Run a command of zfast to its end."""
    return subprocess.run(
        [*ZFAST, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def free_port():
    """A port that no connection is given by chance: one that retries would meet itself there."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Foremen:
    """Processes of ``zfast worker``; they are ended with the test."""

    def __init__(self, folder):
        self._folder = folder
        self.processes = []

    def start(self, endpoint, *options, workers=1, key="worker-1", **environment):
        log = self._folder / f"foreman-{len(self.processes)}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [*ZFAST, "worker", endpoint, "--workers", str(workers), "--key", key, *options],
                env={**importing_tests(), **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        process.log = log
        self.processes.append(process)
        return process

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def gone(pid):
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


def joined(jobs, n=1):
    """The workers of other hosts, once so many are ready."""

    def ready():
        found = [worker for worker in jobs.hub._remote if worker.available]
        return found if len(found) == n else None

    return settled(ready, 30)


def worker_pids(jobs, foreman_pid):
    """The workers of one host."""
    name = f"{socket.gethostname()}:{foreman_pid}"
    return {worker.pid for worker in jobs.hub._remote if worker.host.name == name}


def lost(jobs, foreman_pid):
    """Wait until a host counts as lost."""
    name = f"{socket.gethostname()}:{foreman_pid}"
    settled(lambda: name not in [host.name for host in jobs.hub._remote.hosts])


def shared_nbytes(*pids):
    """Shared memory that some processes have open, what several have counted once."""
    files = {}
    for pid in pids:
        for file in _segment_files(pid):
            files[file.st_dev, file.st_ino] = file.st_blocks * 512
    return sum(files.values())


def _segment_files(pid: int) -> Iterator[os.stat_result]:
    try:
        fds = list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # it has ended
        return
    for fd in fds:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(fd).startswith("/memfd:"):
                yield fd.stat()
