"""Which hosts of a run take data straight from which, as their hub knows it."""

from __future__ import annotations

import logging
import time

from zfast.addresses import host_and_port, is_loopback, parse_endpoint
from zfast.errors import ConfigError, ProtocolError
from zfast.runner.remote_protocol import Peer, Peers, Serving, peer_id_of
from zfast.runner.remote_worker import RemoteHost
from zfast.security.curve_keys import PublicKey

logger = logging.getLogger("zfast.runner")

#: Two hosts of which one could not reach the other do not try again before.
APART_S = 60.0


class HostPeers:
    """Lets hosts that serve data know each other. Threads: the hub's."""

    def __init__(self) -> None:
        self._serving: dict[RemoteHost, Peer] = {}
        self._apart: dict[tuple[RemoteHost, RemoteHost], float] = {}

    def serve(self, host: RemoteHost, serving: Serving, *, guarded: bool) -> None:
        """Others may take data from a host.

        Args:
            guarded: Keys guard the way to the hub, and so must guard this one.

        Raises:
            ProtocolError: They could not, or were told before.
        """
        if host in self._serving:
            raise ProtocolError(f"{host.name} names a second data endpoint")
        try:
            scheme = parse_endpoint(serving.endpoint, guarded=guarded).scheme
            if guarded:
                PublicKey(serving.public_key)
        except ConfigError as error:
            raise ProtocolError(f"no data endpoint: {error.message}") from error
        if scheme != ("tcp" if guarded else "ipc"):
            raise ProtocolError(f"{serving.endpoint} is no data endpoint of this run")
        peer_id = peer_id_of(host.session_id)
        self._serving[host] = Peer(peer_id, serving.endpoint, serving.public_key)
        self._introduce()

    def lose(self, host: RemoteHost) -> None:
        """A host is gone: nobody lets it in any more."""
        self._apart = {pair: until for pair, until in self._apart.items() if host not in pair}
        if self._serving.pop(host, None) is not None:
            self._introduce()

    def part(self, host: RemoteHost, other: RemoteHost, reason: str) -> None:
        """A host could not reach another: for a while it does not try again."""
        if self._apart.get((host, other), 0.0) < time.monotonic():
            logger.warning(
                "host %s takes no data from host %s for %g s, but by way of the flow's process: %s",
                host.name,
                other.name,
                APART_S,
                reason,
            )
        self._apart[host, other] = time.monotonic() + APART_S

    def reaches(self, host: RemoteHost, other: RemoteHost) -> bool:
        """Whether a host may take data from another."""
        if host not in self._serving or other not in self._serving or other.is_retiring:
            return False
        if self._stays_on_machine(other) and host.machine != other.machine:
            return False
        return self._apart.get((host, other), 0.0) < time.monotonic()

    def peer_id(self, host: RemoteHost) -> bytes:
        """What the others call a host that serves data."""
        return self._serving[host].peer_id

    def _introduce(self) -> None:
        peers = Peers(list(self._serving.values()))
        for host in self._serving:
            host.session.post(peers)

    def _stays_on_machine(self, host: RemoteHost) -> bool:
        """Whether no other machine reaches a host's data endpoint: to each it would be its own."""
        url = self._serving[host].endpoint
        return url.startswith("ipc:") or is_loopback(host_and_port(url)[0])
