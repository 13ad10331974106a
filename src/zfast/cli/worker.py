"""``zfast worker``: worker processes on this host for a flow run on another one."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def worker(
    endpoint: str,
    /,
    *,
    workers: Annotated[int | None, Parameter(name=["--workers", "-w"], validator=Number(gte=1))] = (
        None
    ),
    environment: Annotated[str | None, Parameter(name=["--environment", "-e"])] = None,
    key: str = "client",
    insecure: Annotated[bool, Parameter(negative="")] = False,
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
    insecure
        Allow tcp of the loopback interface that nothing guards.
    """
    from zfast.runner.foreman import Foreman
    from zfast.runner.hub_line import HubAddress
    from zfast.security.client_security import ClientSecurity

    guarded = endpoint.startswith("tcp:") and not insecure
    security = ClientSecurity.load(environment, name=key) if guarded else None
    foreman = Foreman(
        HubAddress(endpoint, security, insecure),
        workers if workers is not None else len(os.sched_getaffinity(0)),
        _say,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: foreman.leave())
    foreman.run()


def _say(sentence: str) -> None:
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()
