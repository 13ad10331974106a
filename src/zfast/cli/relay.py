"""``zfast relay``: one endpoint for the events of many processes."""

from __future__ import annotations

import signal
import sys

import msgspec

from zfast.cli.key_options import Environment, Flag, Folder
from zfast.errors import ConfigError
from zfast.events.relay import Relay
from zfast.security.server_security import ServerSecurity


def relay(
    endpoint: str,
    /,
    *,
    environment: Environment = None,
    folder: Folder = None,
    insecure: Flag = False,
    json: Flag = False,
) -> None:
    """Forward events from many publishers to many subscribers, until Ctrl-C or SIGTERM.

    Publishers and subscribers name it by ZFAST_EVENTS_ENDPOINT or their argument ``endpoint``. On
    tcp it is for one environment: who may come in, and what for, is in the key folder.

    Parameters
    ----------
    endpoint
        tcp://host:port, which takes the two ports after it too, or ipc:///path.
    environment
        Such as prod.  [default: ZFAST_ENVIRONMENT, else default]
    folder
        The key folder.  [default: ZFAST_KEYS, else ~/.config/zfast/keys]
    insecure
        Allow tcp of the loopback interface that nothing guards.
    json
        Print the endpoint as JSON.
    """
    security = None
    if endpoint.startswith("tcp:") and not insecure:
        security = ServerSecurity.load(environment, folder=folder)
    elif environment is not None or folder is not None:
        raise ConfigError(
            "environment and folder are for a relay on tcp with keys",
            hint="a relay on ipc passes every environment of its user",
        )
    made = Relay(endpoint, security=security, insecure=insecure)
    signal.signal(signal.SIGTERM, lambda *_: made.stop())
    what = f"events of {security.environment}" if security is not None else "events"
    if json:
        sys.stdout.write(msgspec.json.encode({"endpoint": made.endpoint}).decode() + "\n")
    else:
        sys.stdout.write(f"relaying {what} at {made.endpoint}\n")
    sys.stdout.flush()
    try:
        made.run()
    finally:
        if security is not None:
            security.close()
