"""Where a foreman lets other hosts take data, and with which keys."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from zfast.addresses import EVERY_ADDRESS, host_and_port, is_loopback, parse_endpoint
from zfast.errors import ConfigError, TransportError
from zfast.ip_family import resolve
from zfast.security.curve_keys import KeyPair

#: What switches it off: data of this host reaches others by way of the hub.
NONE = "none"
_FILE_NAME = "data.sock"


@dataclass(frozen=True, slots=True)
class DataEndpoint:
    """Chosen like the hub's: where that is guarded tcp, it is tcp with keys of its own, else ipc.

    Attributes:
        hub_url: The hub's endpoint.
        is_guarded: Whether keys guard that.
        url: ``tcp://host:port``, port ``*`` for any; ``none`` for nowhere; None for the address
            by which this host reaches the hub, and any port.

    Raises:
        ConfigError: The url is malformed, or there are no keys to guard it.
    """

    hub_url: str
    is_guarded: bool
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url in (None, NONE):
            return
        if parse_endpoint(str(self.url), guarded=self.is_guarded).scheme != "tcp":
            raise ConfigError(
                f"other hosts cannot take data at {self.url}", hint="use tcp://host:port, or none"
            )

    def choose(self, folder: Path) -> tuple[str | None, KeyPair | None]:
        """What to bind for a session, None for nothing, and a new pair of keys for it.

        Args:
            folder: The foreman's own, for a socket that only this host's processes reach.

        Raises:
            TransportError: This host's address cannot be found out.
        """
        if self.url == NONE:
            return None, None
        if not self.is_guarded:
            return f"ipc://{folder}/{_FILE_NAME}", None
        return self.url or f"tcp://{self._own_address()}:*", KeyPair.generate("data")

    def as_seen_by_others(self, bound: str) -> str:
        """The endpoint that other hosts connect to, where it is bound to every address.

        Raises:
            ConfigError: It is bound to the loopback interface, and the hub is elsewhere; or to
                IPv4 alone, and the hub is reached over IPv6.
            TransportError: This host's address cannot be found out.
        """
        host, port = host_and_port(bound)
        if bound.startswith("ipc:"):
            return bound
        if host in EVERY_ADDRESS:
            own = self._own_address()
            if own.startswith("[") and host != "[::]":
                raise ConfigError(
                    f"no other host can take data at {bound}: {self.hub_url} is reached over IPv6",
                    hint="use tcp://[::]:port",
                )
            return f"tcp://{own}:{port}"
        if is_loopback(host) and not is_loopback(self._own_address()):
            raise ConfigError(
                f"no other host can take data at {bound}", hint="give the address of a network"
            )
        return bound

    def _own_address(self) -> str:
        """The address of this host's that packets to the hub come from, as a url has it."""
        host, port = host_and_port(self.hub_url)
        try:
            family, address = resolve(host, int(port))
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # sends nothing
                own = str(probe.getsockname()[0])
                return f"[{own}]" if family == socket.AF_INET6 else own
        except OSError as error:
            raise TransportError(
                f"no address of this host leads to {self.hub_url}: {error.strerror}",
                errno=error.errno,
                hint="say where other hosts may take data: --data-endpoint tcp://address:port",
            ) from error
