"""``zfast worker``: worker processes on this host for a flow run on another one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from zfast.cli.key_options import Environment, Flag
from zfast.cli.numbers import Count
from zfast.cli.path_options import to_path


def worker(
    endpoint: str,
    /,
    *,
    workers: Annotated[Count | None, Parameter(name=["--workers", "-w"])] = None,
    environment: Environment = None,
    key: str = "client",
    token_file: Annotated[Path | None, Parameter(show_default=False, converter=to_path)] = None,
    data_endpoint: Annotated[str | None, Parameter(show_default=False)] = None,
    insecure: Flag = False,
) -> None:
    """Run tasks of the flows at an endpoint, one flow run after another.

    Ctrl-C or SIGTERM lets running tasks finish; the second time they are ended.

    Parameters
    ----------
    endpoint
        The task runner's: tcp://host:port, or ipc:///path.
    workers
        Worker processes.  [default: one for each processor]
    environment
        Whose keys.  [default: that of ZFAST_ENVIRONMENT, else default]
    key
        Which key pair of the key folder to show.
    token_file
        Holds a bearer token for it, and a new one before that ends.  [default: ZFAST_TOKEN_FILE]
    data_endpoint
        Where the other hosts of a run take data of this one: tcp://host:port, port * for any, or
        none: they get it by way of the flow's process.  [default: any port of the address by which
        this host reaches the flow's, with keys made for the run]
    insecure
        Allow tcp of the loopback interface that nothing guards.
    """
    from zfast.cli.hub_options import hub_address
    from zfast.runner.foreman import Foreman

    foreman = Foreman(
        hub_address(
            endpoint, environment=environment, key=key, insecure=insecure, token_file=token_file
        ),
        workers if workers is not None else _n_processors(),
        _say,
        data_endpoint=data_endpoint,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: foreman.leave())
    foreman.run()


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say(sentence: str) -> None:
    try:
        sys.stdout.write(sentence + "\n")
        sys.stdout.flush()
    except OSError:  # the work goes on where nobody can be told of it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
