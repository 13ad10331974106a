"""``zfast status``: the workers, leases and queue of task runners, once or live."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zfast.addresses import runtime_root
from zfast.cli.hub_options import hub_address
from zfast.cli.key_options import Environment, Flag
from zfast.errors import RecvTimeoutError, ZfastError
from zfast.runner.hub_line import HubAddress
from zfast.runner.status import HubStatus, WorkerStatus
from zfast.runner.status_client import ask_all, ask_status

#: Between two pictures of ``--watch``.
INTERVAL_S = 1.0
_BAR_COLUMNS = 30


def status(
    endpoint: str | None = None,
    /,
    *,
    watch: Annotated[bool, Parameter(name=["--watch", "-w"], negative="")] = False,
    environment: Environment = None,
    key: str = "client",
    insecure: Flag = False,
    json: Flag = False,
) -> int:
    """Show the progress, workers, leases and queue of flow runs.

    A task runner that answers and cannot be shown, as one of another version, is named on standard
    error, once, beside the others; without --watch the exit status is 1 then.

    Parameters
    ----------
    endpoint
        A task runner's; a key with the role Viewer may look.  [default: every one of yours here]
    watch
        Show it anew each second, until Ctrl-C.
    environment
        Whose keys.  [default: that of ZFAST_ENVIRONMENT, else default]
    key
        Which key pair of the key folder to show.
    insecure
        Allow tcp of the loopback interface that nothing guards.
    json
        Print a list of JSON objects; with --watch a line each second.
    """
    address: HubAddress | None = None
    if endpoint is not None:
        address = hub_address(endpoint, environment=environment, key=key, insecure=insecure)
    console = Console(highlight=False)
    asker = _Asker(address)
    if not watch:
        found = asker.ask()
        _print_json(found) if json else console.print(asker.draw(found))
        return 1 if asker.failures else 0
    if json:
        while True:
            _print_json(asker.ask_patiently())
            time.sleep(INTERVAL_S)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(asker.draw(asker.ask_patiently()), refresh=True)
            time.sleep(INTERVAL_S)


class _Asker:
    """Asks one hub, or all of this user here, and tells which of those cannot be shown.

    Attributes:
        failures: What was told.
    """

    def __init__(self, address: HubAddress | None) -> None:
        self._address = address
        self.failures: set[str] = set()

    def ask(self) -> list[HubStatus]:
        """The hubs that answer and can be shown."""
        return ask_all(self._tell) if self._address is None else [ask_status(self._address)]

    def ask_patiently(self) -> list[HubStatus]:
        """Nothing while its flow has not begun, or is over: the next may come."""
        try:
            return self.ask()
        except RecvTimeoutError:
            return []

    def draw(self, found: list[HubStatus]) -> RenderableType:
        """What was found, for a terminal."""
        if not found:
            other = "other " if self.failures else ""
            return Text(f"no {other}task runner has workers now, as far as {runtime_root()} says")
        return Group(*(part for hub in found for part in _parts(hub)))

    def _tell(self, error: ZfastError) -> None:
        if str(error) not in self.failures:
            self.failures.add(str(error))
            print(f"not shown: {error}", file=sys.stderr)


def _print_json(found: list[HubStatus]) -> None:
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()


def _parts(hub: HubStatus) -> list[RenderableType]:
    where = f", joined at {hub.endpoint} by {len(hub.hosts)} hosts" if hub.endpoint else ""
    progress = Table.grid(padding=(0, 1))
    progress.add_row(
        ProgressBar(hub.ended + hub.running + hub.queued, hub.ended, width=_BAR_COLUMNS),
        f"tasks: {hub.ended} ended, {hub.running} running, {hub.queued} waiting, "
        f"{hub.replays} of them again",
    )
    table = Table("worker", "host", "state", "task run", "attempt", "for", "memory", box=None)
    for worker in hub.workers:
        table.add_row(*_cells(worker))
    return [
        Text(f"flow run process {hub.pid}{where}"),
        progress,
        Text(
            f"{_mib(hub.leased_nbytes)} of results leased here, {_mib(hub.remote_nbytes)} on other "
            f"hosts, {_mib(hub.inflight_nbytes)} under way; "
            f"lease {hub.lease_s:g} s"
        ),
        table,
    ]


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
