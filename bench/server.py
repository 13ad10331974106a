"""A Prefect server of the bench's own: a free port, an empty database, gone afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bench.processes import STOP_TIMEOUT_S, stop_group

if TYPE_CHECKING:
    from typing_extensions import Self

START_TIMEOUT_S = 90.0
DRAIN_TIMEOUT_S = 90.0
#: An idle server counts task runs faster than this.
IDLE_ANSWER_S = 0.05
#: It is idle once it says the same so often. What is left of a batch may come 5 s later.
LOOK_EVERY_S, IDLE_LOOKS = 0.25, 10


class PrefectServer:
    """``prefect server start`` in a process of its own.

    Args:
        home: Becomes PREFECT_HOME of the server and of its clients.
    """

    def __init__(self, home: Path) -> None:
        """Start it; entering the context waits until it answers."""
        home.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        common = {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        #: What a client needs in its environment before it imports Prefect.
        self.client_env = {**common, "PREFECT_API_URL": self.url}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
        with open(home / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                env={**inherited, **common},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while self._count_completed() is None:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the Prefect server did not start")
                time.sleep(0.2)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def drain(self) -> None:
        """Wait until it has worked off what was sent to it: no more task runs are completed."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        n_before, n_same = None, 0
        while n_same < IDLE_LOOKS and time.monotonic() < deadline:
            start = time.monotonic()
            n_now = self._count_completed()
            is_quick = n_now is not None and time.monotonic() - start < IDLE_ANSWER_S
            n_same = n_same + 1 if is_quick and n_now == n_before else 0
            n_before = n_now
            time.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stop_group(self._process.pid)

    def _count_completed(self) -> int | None:
        """How many task runs it knows as completed; None if it does not answer."""
        # A query, not the health check: the database is what falls behind.
        request = urllib.request.Request(
            f"{self.url}/task_runs/count",
            data=b'{"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}',
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.read())
        except (urllib.error.URLError, OSError):
            return None
