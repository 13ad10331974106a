"""How the verbs about task runners reach a hub, and with which key."""

from __future__ import annotations

from pathlib import Path

from zfast.runner.hub_line import HubAddress
from zfast.security.client_security import ClientSecurity


def hub_address(
    endpoint: str,
    *,
    environment: str | None,
    key: str,
    insecure: bool,
    token_file: Path | None = None,
) -> HubAddress:
    """A hub's address, with this host's keys for tcp.

    Raises:
        ConfigError: The endpoint is malformed or unprotected, or there is no key for it.
    """
    security = None
    if endpoint.startswith("tcp:") and not insecure:
        security = ClientSecurity.load(environment, name=key, token_file=token_file)
    return HubAddress(endpoint, security, insecure)
