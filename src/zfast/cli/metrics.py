"""``zfast metrics``: a Prometheus page of what events tell."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from zfast.events.subscription import Subscription
from zfast.metrics import DEFAULT_PORT, PrometheusPage


def metrics(
    *,
    port: int = DEFAULT_PORT,
    host: str = "127.0.0.1",
    environment: Annotated[str | None, Parameter(name=["--environment", "-e"])] = None,
    endpoint: str | None = None,
    insecure: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Serve metrics of the states of runs for Prometheus, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    port
        Of the page; 0 lets the system choose.
    host
        Where it listens.
    environment
        Which one; '*' is every one.  [default: that of ZFAST_ENVIRONMENT, else default]
    endpoint
        A relay's.  [default: every publisher of yours on this host]
    insecure
        Allow a relay on tcp of the loopback interface that nothing guards.
    json
        Print the page's address as JSON.
    """
    subscription = Subscription(endpoint, environment=environment, insecure=insecure)
    signal.signal(signal.SIGTERM, lambda *_: subscription.close())
    with subscription as events, PrometheusPage(port, host) as page:
        url = f"http://{host}:{page.port}/metrics"
        line = msgspec.json.encode({"url": url}).decode() if json else f"metrics at {url}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        for event in events:
            page.metrics.add(event)
