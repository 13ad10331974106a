"""``zfast watch``: states of runs, one line each, as they happen."""

from __future__ import annotations

import signal
import sys
import time
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from zfast.cli.event_options import HERE, Source
from zfast.cli.key_options import Flag
from zfast.cli.numbers import Count
from zfast.events.event import Event, Gap, PublisherJoined, StateEvent, WorkerEvent

_STYLES = {
    "COMPLETED": "green",
    "FAILED": "red",
    "CRASHED": "bold red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "RUNNING": "blue",
    "SCHEDULED": "magenta",
}


def watch(
    *,
    flow: Annotated[list[str] | None, Parameter(negative="")] = None,
    task: Annotated[list[str] | None, Parameter(negative="")] = None,
    state: Annotated[list[str] | None, Parameter(negative="")] = None,
    kind: Annotated[
        list[Literal["task-run", "flow-run", "worker"]] | None, Parameter(negative="")
    ] = None,
    snapshot: bool = True,
    count: Count | None = None,
    json: Flag = False,
    source: Source = HERE,
) -> None:
    """Show the states of runs as they happen, until Ctrl-C.

    Runs whose states are broadcast: ``with zfast.broadcast():`` or ZFAST_BROADCAST=1.

    Parameters
    ----------
    flow
        A flow's name; give it several times for several.
    task
        A task's name.
    state
        A state's name or type, such as Retrying or FAILED.
    kind
        What the states are of.  [default: task-run and flow-run]
    snapshot
        First show the current states of runs.
    count
        End after so many states.
    json
        A JSON object a line.
    """
    subscription = source.subscribe(
        flows=flow or (),
        tasks=task or (),
        states=state or (),
        kinds=kind or (),
        snapshot=snapshot,
        membership=True,
    )
    # What stops a service stops this one cleanly too.
    signal.signal(signal.SIGTERM, lambda *_: subscription.close())
    console = Console(highlight=False, soft_wrap=True)
    shown = 0
    with subscription as events:
        for event in events:
            if json:
                sys.stdout.write(_as_json(event) + "\n")
                sys.stdout.flush()
            else:
                console.print(_as_line(event))
            shown += isinstance(event, StateEvent | WorkerEvent)
            if count is not None and shown >= count:
                return


def _as_json(event: Event) -> str:
    fields: dict[str, Any] = {"event": "state" if isinstance(event, StateEvent) else _name(event)}
    fields |= msgspec.structs.asdict(event)
    return msgspec.json.encode(fields).decode()


def _as_line(event: Event) -> Text:
    if isinstance(event, WorkerEvent):
        state = event.state_name.lower()
        return Text(f"– {event.worker} {state}  {event.flow_name}", style="dim")
    if not isinstance(event, StateEvent):
        text = f"{_name(event)} {event.publisher[:8]}"
        if isinstance(event, Gap):
            text += f": {event.lost} events are missing"
        return Text(f"– {text}", style="bold yellow" if isinstance(event, Gap) else "dim")
    clock = time.strftime("%H:%M:%S", time.localtime(event.state_ns / 1e9))
    line = Text(f"{clock}.{event.state_ns // 1_000_000 % 1000:03d} ", style="dim")
    line.append(f"{event.state_name:<12}", style=_STYLES.get(event.state_type, ""))
    line.append(f" {event.kind:<8} ", style="dim")
    line.append(event.flow_name)
    if event.kind == "task-run":
        line.append(f" › {event.run_name or event.name}")
    else:
        line.append(f" {event.run_name}")
    if event.run_count > 1:
        line.append(f"  run {event.run_count}", style="yellow")
    if event.message and event.state_type in ("FAILED", "CRASHED"):
        line.append(f"  {event.message.splitlines()[0][:120]}", style="dim")
    return line


def _name(event: Event) -> str:
    if isinstance(event, Gap):
        return "gap"
    if isinstance(event, WorkerEvent):
        return "worker"
    return "joined" if isinstance(event, PublisherJoined) else "left"
