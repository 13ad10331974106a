"""The line to one peer's data endpoint: asks, asks again, connects again, gives up."""

from __future__ import annotations

import logging
import time

import zmq

from zfast.errors import ProtocolError, TransportError, ZfastError
from zfast.runner.data_connection import DataConnection, DataPeer, refusal, silence
from zfast.runner.data_fetches import Done, Fetches
from zfast.runner.data_protocol import WINDOW
from zfast.runner.data_room import Room
from zfast.security.curve_keys import KeyPair
from zfast.sharing.descriptor import Descriptor

logger = logging.getLogger("zfast.worker")

#: Answers that are taken before anything else has its turn.
BURST = 2 * WINDOW
#: When nothing has come for so long, what is under way is asked for again; then half as often.
RETRY_S = 2.0
#: Between two connections to one peer.
PAUSE_S = 0.1
#: A peer may hear of our key so much later than we hear of the peer.
REFUSAL_S = 2.0
#: While room is being made, it is seen so soon that it is there.
ROOM_LOOK_S = 0.005


class DataLink:
    """Fetches from one peer, over one connection after another. Threads: the poller's.

    Args:
        peer, pair, poller: As ``DataConnection``.
        room: Where what is fetched is put.
        patience_s: The peer is given up when it has given nothing for so long.

    Attributes:
        next_turn: When ``turn`` must be called at the latest, by the monotonic clock.
    """

    def __init__(
        self,
        peer: DataPeer,
        pair: KeyPair | None,
        poller: zmq.Poller,
        room: Room,
        patience_s: float,
    ) -> None:
        self._peer = peer
        self._pair = pair
        self._poller = poller
        self._patience_s = patience_s
        self._fetches = Fetches(peer.endpoint, room)
        self._connection: DataConnection | None = None
        self._opens = 0.0
        self._heard = 0.0
        self._retry_s = RETRY_S
        self._asks_again = float("inf")
        self._refused: float | None = None
        self.next_turn = float("inf")

    @property
    def is_over(self) -> bool:
        """Whether it has no connection and needs none."""
        return self._connection is None and not self._fetches

    def fetch(self, descriptor: Descriptor, done: Done) -> None:
        """Begin a fetch; see ``DataClient.fetch``."""
        if not self._fetches:
            self._heard, self._refused = time.monotonic(), None
        self._fetches.add(descriptor, done)
        self.next_turn = 0.0

    def cancel(self, descriptor: Descriptor) -> None:
        """Forget a fetch, if it is one of this peer's."""
        self._fetches.cancel(descriptor)
        if not self._fetches:
            self.next_turn = 0.0  # to see whether the connection is needed still

    def turn(self, now: float) -> None:
        """Take what came, ask for what is next, and say what has ended."""
        if self._fetches and self._connection is None and now >= self._opens:
            self._open(now)
        if self._connection is not None:
            self._connection.news.read()
            self._receive(self._connection, now)
            self._follow(self._connection, now)
        if self._fetches and now >= self._gives_up:
            self._give_up(self._why_hopeless(), now)
        if self._connection is not None and self._connection.news.connected:
            self._ask(self._connection, now)
        elif not self._fetches:
            self._shut(now)  # for nobody it need not try to connect again and again
        self.next_turn = self._when_next(now)
        self._fetches.tell_ended()

    def close(self) -> None:
        """End it; nobody is told."""
        self._shut(0.0)
        self._fetches.clear()

    # ---- the connection ---------------------------------------------------------------------

    def _open(self, now: float) -> None:
        try:
            self._connection = DataConnection(self._peer, self._pair, self._poller)
        except ZfastError as error:
            self._give_up(error, now)

    def _follow(self, connection: DataConnection, now: float) -> None:
        """See what has become of the connection."""
        news = connection.news
        if news.refused and self._refused is None:
            self._refused = now
        elif news.connected:
            self._refused = None
        if news.lost and not self._fetches.questions:
            self._heard = now  # the peer owed nothing
        if news.refused or news.lost:
            self._shut(now)

    def _shut(self, now: float) -> None:
        """What is under way is lost, and is asked for on the next connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._opens, self._asks_again = now + PAUSE_S, float("inf")
        self._retry_s = RETRY_S
        self._fetches.mark_all_unsent()

    def _give_up(self, error: ZfastError, now: float) -> None:
        self._fetches.give_up(error)
        self._refused = None
        self._shut(now)

    def _why_hopeless(self) -> TransportError:
        if self._refused is not None and self._pair is not None:
            return refusal(self._peer, self._pair)
        return silence(self._peer, self._connection, self._patience_s)

    # ---- in and out -------------------------------------------------------------------------

    def _receive(self, connection: DataConnection, now: float) -> None:
        for _ in range(BURST):
            try:
                received = connection.receive()
            except ProtocolError as error:
                logger.warning("what %s sent was dropped: %s", self._peer.endpoint, error)
                continue
            if received is None:
                return
            if self._fetches.take(*received):
                # On a slow line not before the next answer can be expected.
                self._retry_s = max(RETRY_S, 2 * (now - self._heard))
                self._heard, self._asks_again = now, now + self._retry_s

    def _ask(self, connection: DataConnection, now: float) -> None:
        questions = self._fetches.questions
        if questions and now >= self._asks_again:
            self._retry_s *= 2
            self._fetches.mark_all_unsent()
        for number, question in list(questions.items()):
            if not question.is_sent and not self._send(connection, number, now):
                return
        while len(questions) < WINDOW and (new := self._fetches.next_question()) is not None:
            if len(questions) == 1:
                self._heard = now  # from now on the peer owes something
            if not self._send(connection, new, now):
                return

    def _send(self, connection: DataConnection, number: int, now: float) -> bool:
        self._asks_again = now + self._retry_s
        if not connection.send(number, self._fetches.questions[number].ask):
            return False
        self._fetches.mark_sent(number)
        return True

    # ---- time -------------------------------------------------------------------------------

    @property
    def _waits_for_room(self) -> bool:
        """Whether nothing waits for the peer."""
        is_up = self._connection is not None and self._connection.news.connected
        return is_up and not self._fetches.questions

    @property
    def _gives_up(self) -> float:
        if self._waits_for_room:
            return float("inf")
        gives_up = self._heard + self._patience_s
        return gives_up if self._refused is None else min(gives_up, self._refused + REFUSAL_S)

    def _when_next(self, now: float) -> float:
        if not self._fetches:
            return float("inf")
        if self._waits_for_room:
            return now + ROOM_LOOK_S
        if self._connection is None:
            return min(self._gives_up, self._opens)
        return min(self._gives_up, self._asks_again)
