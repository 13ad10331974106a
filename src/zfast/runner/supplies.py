"""Supplies: what lies on the hub's host and jobs on others take, sent to each host once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from zfast.runner.remote_protocol import Supply
from zfast.runner.remote_worker import RemoteHost
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.segments import Lease


@dataclass(slots=True)
class _Supplied:
    """Where a publication of this host was sent to, and the leases it was sent for, by identity."""

    hosts: set[RemoteHost] = field(default_factory=set)
    leases: dict[int, weakref.ref[Lease]] = field(default_factory=dict)


class Supplies:
    """A host keeps what it was sent as long as one of the leases lives that jobs for it held.

    Args:
        command: Runs something on the hub's thread; at once when the hub has ended. Called by the
            collector, on any thread at any moment.
        end: Called when a host need not keep something any more.

    Threads: the hub's.
    """

    def __init__(
        self,
        command: Callable[[Callable[[], None]], None],
        end: Callable[[RemoteHost, Descriptor], None],
    ) -> None:
        self._command = command
        self._end = end
        self._supplied: dict[Descriptor, _Supplied] = {}

    def send(self, host: RemoteHost, lease: Lease) -> None:
        """Send a host what a lease is on, unless it has it.

        Raises:
            ArenaError, TransportError: It cannot be read here.
        """
        descriptor, number = lease.descriptor, id(lease)
        supplied = self._supplied.setdefault(descriptor, _Supplied())
        known = supplied.leases.get(number)
        if known is None or known() is not lease:
            supplied.leases[number] = weakref.ref(
                lease, lambda ended: self._command(lambda: self._ended(descriptor, number, ended))
            )
        if host not in supplied.hosts:
            host.session.post(Supply(descriptor), [lease.view()])
            supplied.hosts.add(host)

    def hosts(self, lease: Lease) -> set[RemoteHost]:
        """Who has what a lease is on."""
        supplied = self._supplied.get(lease.descriptor)
        return supplied.hosts if supplied is not None else set()

    def forget(self, host: RemoteHost, descriptor: Descriptor) -> None:
        """A host has not got something, whatever it was sent."""
        if descriptor in self._supplied:
            self._supplied[descriptor].hosts.discard(host)

    def lose(self, host: RemoteHost) -> None:
        """A host is gone."""
        for supplied in self._supplied.values():
            supplied.hosts.discard(host)

    def _ended(self, descriptor: Descriptor, number: int, ended: weakref.ref[Lease]) -> None:
        supplied = self._supplied.get(descriptor)
        if supplied is None or supplied.leases.get(number) is not ended:
            return
        del supplied.leases[number]
        if not supplied.leases:
            del self._supplied[descriptor]
            for host in supplied.hosts:
                self._end(host, descriptor)
