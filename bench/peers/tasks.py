"""A process that runs flows under one task runner with two workers.

Run: ``tasks RUNNER`` with PREFECT_API_URL set. A command names the flow, ``module.function`` in
`bench.peers`, and its parameters. The answer is what the flow measured, and the peak memory of this
process, the flow's driver.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.peers.control import serve
from bench.peers.memory import PeakMemory

WORKERS = 2


@contextmanager
def runners(name: str) -> Iterator[Callable[[], Any]]:
    """What makes task runners with two workers, a new one for each flow run."""
    if name in ("zfast, two hosts", "zfast, two hosts, CURVE"):
        from bench.peers.hosts import hosts
        from zfast import ZfastTaskRunner

        with hosts(encrypted=name.endswith("CURVE")) as options:
            yield partial(ZfastTaskRunner, **options)
    else:
        yield partial(_make_runner, name)


def _make_runner(name: str) -> Any:
    """One that starts its own workers."""
    if name == "zfast":
        from zfast import ZfastTaskRunner

        return ZfastTaskRunner(max_workers=WORKERS)
    if name == "ThreadPool":
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=WORKERS)
    if name == "ProcessPool":
        from prefect.task_runners import ProcessPoolTaskRunner

        return ProcessPoolTaskRunner(max_workers=WORKERS)
    if name in ("Dask", "Dask, TLS"):
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(
            cluster_kwargs={
                "n_workers": WORKERS,
                "threads_per_worker": 1,
                "dashboard_address": None,
                # True: a certificate for this cluster alone, and all traffic by tls.
                "security": name == "Dask, TLS" or None,
            }
        )
    if name == "Ray":
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(init_kwargs={"num_cpus": WORKERS, "include_dashboard": False})
    raise ValueError(name)


def main() -> None:
    def answer(make_runner: Callable[[], Any], command: dict[str, Any]) -> dict[str, Any]:
        module, _, function = command["flow"].partition(".")
        flow = getattr(importlib.import_module(f"bench.peers.{module}"), function)
        flow = flow.with_options(task_runner=make_runner())
        memory = PeakMemory()
        measured: dict[str, float] = flow(**command["parameters"])
        peak_nbytes = memory.extra_nbytes()
        return measured if peak_nbytes is None else {**measured, "driver_peak_nbytes": peak_nbytes}

    with runners(sys.argv[1]) as make_runner:
        serve(partial(answer, make_runner))


if __name__ == "__main__":
    main()
