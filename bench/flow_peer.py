"""A process that runs a flow each round under one task runner with two workers."""

from __future__ import annotations

import importlib.util
from typing import Any

from bench.measure import UnavailablePeerError
from bench.processes import PeerProcess, python_command
from bench.server import PrefectServer

#: Peers that come with an integration of Prefect's.
PACKAGES = {"Dask": "prefect_dask", "Dask, TLS": "prefect_dask", "Ray": "prefect_ray"}
FLOW_TIMEOUT_S = 240.0


class FlowPeer:
    """Runs a flow of `bench.peers`; what its rounds measure is what the flow returns.

    Args:
        runner: The task runner, by the name that `bench.peers.tasks` knows it by.
        server: The server that records the runs.
        flow: ``module.function`` in `bench.peers`.
        parameters: The flow's.
    """

    def __init__(self, runner: str, server: PrefectServer, flow: str, **parameters: Any) -> None:
        """Start the process."""
        package = PACKAGES.get(runner)
        if package and importlib.util.find_spec(package) is None:
            raise UnavailablePeerError(f"{package} is not installed")
        self._server = server
        self._command = {"flow": flow, "parameters": parameters}
        self._process = PeerProcess(python_command("tasks", runner), server.client_env)

    def round(self) -> dict[str, float]:
        """Run the flow once, on a server that has nothing else to do.

        Returns:
            What the flow measured, and ``driver_peak_nbytes``: how far the peak memory of the
            process that ran the flow lay above what it held before.
        """
        self._server.drain()
        return self._process.ask(FLOW_TIMEOUT_S, **self._command)

    def close(self) -> None:
        """End the process."""
        self._process.close()
