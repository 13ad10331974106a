"""A process that runs flows under one task runner with two workers.

Run: ``tasks RUNNER`` with PREFECT_API_URL set. A command names the flow and its parameters.
"""

from __future__ import annotations

import sys
from typing import Any

from bench.peers import flows
from bench.peers.control import serve

WORKERS = 2


def make_runner(name: str) -> Any:
    """A task runner with two workers; each flow run starts its own."""
    if name == "zfast":
        from zfast import ZfastTaskRunner

        return ZfastTaskRunner(max_workers=WORKERS)
    if name == "ThreadPool":
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=WORKERS)
    if name == "ProcessPool":
        from prefect.task_runners import ProcessPoolTaskRunner

        return ProcessPoolTaskRunner(max_workers=WORKERS)
    if name == "Dask":
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(
            cluster_kwargs={
                "n_workers": WORKERS,
                "threads_per_worker": 1,
                "dashboard_address": None,
            }
        )
    if name == "Ray":
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(init_kwargs={"num_cpus": WORKERS, "include_dashboard": False})
    raise ValueError(name)


def main() -> None:
    name = sys.argv[1]

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        flow = getattr(flows, command["flow"]).with_options(task_runner=make_runner(name))
        return {"seconds": flow(**command["parameters"])}

    serve(answer)


if __name__ == "__main__":
    main()
