"""``zfast relay``: one endpoint for the events of many processes."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from zfast.events.relay import Relay


def relay(
    endpoint: str,
    /,
    *,
    insecure: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Forward events from many publishers to many subscribers, until Ctrl-C or SIGTERM.

    Publishers and subscribers name it by ZFAST_EVENTS_ENDPOINT or their argument ``endpoint``.

    Parameters
    ----------
    endpoint
        tcp://host:port, which takes the two ports after it too, or ipc:///path.
    insecure
        Allow tcp of the loopback interface that nothing guards.
    json
        Print the endpoint as JSON.
    """
    made = Relay(endpoint, insecure=insecure)
    signal.signal(signal.SIGTERM, lambda *_: made.stop())
    if json:
        sys.stdout.write(msgspec.json.encode({"endpoint": made.endpoint}).decode() + "\n")
    else:
        sys.stdout.write(f"relaying events at {made.endpoint}\n")
    sys.stdout.flush()
    made.run()
