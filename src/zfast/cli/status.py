"""``zfast status``: the workers, leases and queue of task runners."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from zfast.runner.hub_line import HubAddress
from zfast.runner.status import HubStatus, WorkerStatus
from zfast.runner.status_client import ask_all, ask_status
from zfast.security.client_security import ClientSecurity


def status(
    endpoint: str | None = None,
    /,
    *,
    environment: Annotated[str | None, Parameter(name=["--environment", "-e"])] = None,
    key: str = "client",
    insecure: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Show the workers, leases and queue of flow runs.

    Parameters
    ----------
    endpoint
        A task runner's; a key with the role Viewer may look.  [default: every one of yours here]
    environment
        Whose keys.  [default: that of ZFAST_ENVIRONMENT, else default]
    key
        Which key pair of the key folder to show.
    insecure
        Allow tcp of the loopback interface that nothing guards.
    json
        Print a list of JSON objects.
    """
    if endpoint is None:
        found = ask_all()
    else:
        guarded = endpoint.startswith("tcp:") and not insecure
        security = ClientSecurity.load(environment, name=key) if guarded else None
        found = [ask_status(HubAddress(endpoint, security, insecure))]
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    console = Console(highlight=False)
    if not found:
        console.print("no task runner of yours has workers on this host now")
    for hub in found:
        _print(console, hub)


def _print(console: Console, hub: HubStatus) -> None:
    where = f", joined at {hub.endpoint} by {len(hub.hosts)} hosts" if hub.endpoint else ""
    console.print(
        f"flow run process {hub.pid}{where}: {hub.queued} tasks wait, {hub.running} run, "
        f"{hub.replays} of them again; {_mib(hub.leased_nbytes)} of results leased, "
        f"{_mib(hub.inflight_nbytes)} under way; lease {hub.lease_s:g} s",
        soft_wrap=True,
    )
    table = Table("worker", "host", "state", "task run", "attempt", "for", "memory", box=None)
    for worker in hub.workers:
        table.add_row(*_cells(worker))
    console.print(table)


def _cells(worker: WorkerStatus) -> list[str]:
    job = worker.jobs[0] if worker.jobs else None
    return [
        str(worker.pid),
        worker.host or "here",
        worker.state,
        job.job_id if job else "",
        str(job.attempt) if job else "",
        f"{job.since_s:.1f} s" if job else "",
        _mib(worker.private_nbytes) if worker.private_nbytes is not None else "",
    ]


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):.0f} MiB"
