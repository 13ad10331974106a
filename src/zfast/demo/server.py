"""A private Prefect server for the demo, and the environment in which its flows run."""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from zfast.demo.workspace import Workspace
from zfast.errors import ZfastError

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 90


@contextmanager
def prefect_environment(workspace: Workspace) -> Iterator[Mapping[str, str]]:
    """Environment variables under which Prefect finds a server, and says little.

    The server is the one that ``PREFECT_API_URL`` names, or else one that is started here, with an
    empty database in the workspace, and stopped at the end.

    Raises:
        ZfastError: It does not start; ``detail`` has the last lines it printed.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield {**os.environ, **_quiet()}
        return
    # The user's own settings, profile and API key are no concern of a private server.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    port = _free_port()
    url = f"http://{_HOST}:{port}/api"
    environment |= {
        **_quiet(),
        "PREFECT_HOME": str(workspace.folder / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Else a proxy is asked for the way to this very host.
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), _HOST])),
    }
    server = workspace.start("server", server_command(port), environment)
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not _is_healthy(url):
        if server.poll() is not None:
            raise ZfastError(
                f"Prefect's server ended with status {server.returncode} before it was ready",
                detail=workspace.log_tail("server"),
                hint="or set PREFECT_API_URL to a server that runs",
            )
        if time.monotonic() > deadline_s:
            raise ZfastError(
                f"Prefect's server was not ready within {_START_TIMEOUT_S} s",
                detail=workspace.log_tail("server"),
                hint="or set PREFECT_API_URL to a server that runs",
            )
        time.sleep(0.1)
    yield {**environment, "PREFECT_API_URL": url}
    workspace.stop(server)


def server_command(port: int) -> list[str]:
    """The command that starts Prefect's server."""
    options = ["--host", _HOST, "--port", str(port), "--no-ui"]
    return [sys.executable, "-m", "prefect", "server", "start", *options]


def _quiet() -> dict[str, str]:
    return {"PREFECT_LOGGING_LEVEL": "WARNING"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _is_healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
