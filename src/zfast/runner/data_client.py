"""Fetches what lies in the shared memory of other hosts into this process's arena."""

from __future__ import annotations

import time

import zmq

from zfast.runner.data_connection import DataPeer as DataPeer
from zfast.runner.data_fetches import Done
from zfast.runner.data_link import DataLink
from zfast.runner.data_room import Room
from zfast.security.curve_keys import KeyPair
from zfast.sharing.descriptor import Descriptor

#: A peer that has given nothing for so long is given up.
PATIENCE_S = 10.0


class DataClient:
    """Fetches from the data endpoints of other hosts, from many at once. Threads: the poller's.

    Args:
        pair: This process's keys, which tcp needs.
        poller: Woken when there is something to take.
        patience_s: A peer that has given nothing for so long is given up, and what was to be
            fetched from it.
    """

    def __init__(
        self, pair: KeyPair | None, poller: zmq.Poller, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._pair = pair
        self._poller = poller
        self._room = Room()
        self._patience_s = patience_s
        self._links: dict[DataPeer, DataLink] = {}

    @property
    def next_turn(self) -> float:
        """When ``turn`` must be called at the latest, by the monotonic clock."""
        return min((link.next_turn for link in self._links.values()), default=float("inf"))

    def fetch(self, descriptor: Descriptor, peer: DataPeer, done: Done) -> None:
        """Begin to fetch what a peer has.

        Args:
            descriptor: What; nothing that is being fetched from it already.
            done: Called once, by ``turn``, unless it is cancelled: with a block of the arena that
                holds the bytes, or with what went wrong. It may fetch and cancel others.

        Raises:
            ProtocolError: The descriptor is malformed.
            ConfigError: It is being fetched already.
        """
        link = self._links.get(peer)
        if link is None:
            link = DataLink(peer, self._pair, self._poller, self._room, self._patience_s)
            self._links[peer] = link
        link.fetch(descriptor, done)

    def cancel(self, descriptor: Descriptor) -> None:
        """Fetch it no more; ``done`` is not called. Nothing happens if it is not being fetched."""
        for link in self._links.values():
            link.cancel(descriptor)

    def turn(self) -> None:
        """Take what came, ask for what is next, and give up what has come to nothing."""
        for peer, link in list(self._links.items()):
            link.turn(time.monotonic())
            if link.is_over:
                self._links.pop(peer, None)

    def close(self) -> None:
        """End all fetches, without a word, and all connections."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._room.close()
