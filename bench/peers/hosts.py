"""Two hosts on this machine: processes of ``zfast worker``, one worker each, joined over tcp."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

HOSTS = 2
STOP_TIMEOUT_S = 10.0
ZFAST = [sys.executable, "-c", "import sys; from zfast.cli import main; sys.exit(main())"]


@contextmanager
def hosts(*, encrypted: bool) -> Iterator[dict[str, Any]]:
    """Start them; they serve one flow run after another.

    Args:
        encrypted: With keys, all traffic by CURVE; else with no protection at all.

    Yields:
        What a task runner that they join is made with.
    """
    with ExitStack() as stack:
        endpoint = f"tcp://127.0.0.1:{_free_port()}"
        options: dict[str, Any] = {"max_workers": 0, "endpoint": endpoint}
        if encrypted:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys"
            os.environ["ZFAST_KEYS"] = str(folder)
            options["security"] = _make_keys(KeyFolder(folder))
            stack.callback(options["security"].close)
        else:
            options["insecure"] = True
        for number in range(1, HOSTS + 1):
            protection = ["--key", f"worker-{number}"] if encrypted else ["--insecure"]
            command = [*ZFAST, "worker", endpoint, "--workers", "1", *protection]
            # This process's standard output is for its answers.
            stack.callback(_stop, subprocess.Popen(command, stdout=sys.stderr))
        yield options


def _make_keys(folder: KeyFolder) -> ServerSecurity:
    folder.new("default", "server")
    for number in range(1, HOSTS + 1):
        name = f"worker-{number}"
        pair = folder.new("default", name).pair
        folder.authorize(pair.public, name, Role.WORKER, "default")
    return ServerSecurity.load()


def _free_port() -> int:
    # It stays free for want of anyone else who binds: each flow run's runner binds it anew.
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
