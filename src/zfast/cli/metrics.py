"""``zfast metrics``: a Prometheus page of what events tell."""

from __future__ import annotations

import signal
import sys

import msgspec

from zfast.cli.event_options import HERE, Source
from zfast.cli.key_options import Flag
from zfast.cli.numbers import Port
from zfast.events.event import Kind
from zfast.metrics import DEFAULT_PORT, PrometheusPage


def metrics(
    *,
    port: Port = DEFAULT_PORT,
    host: str = "127.0.0.1",
    json: Flag = False,
    source: Source = HERE,
) -> None:
    """Serve metrics of the states of runs for Prometheus, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    port
        Of the page; 0 lets the system choose.
    host
        Where it listens.
    json
        Print the page's address as JSON.
    """
    subscription = source.subscribe(kinds=[kind.value for kind in Kind])
    signal.signal(signal.SIGTERM, lambda *_: subscription.close())
    with subscription as events, PrometheusPage(port, host) as page:
        line = msgspec.json.encode({"url": page.url}).decode() if json else f"metrics at {page.url}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        for event in events:
            page.metrics.add(event)
