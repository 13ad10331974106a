"""Link: counted, acknowledged, flow-controlled delivery between a ROUTER and its DEALERs.

Every message is counted by both sides and acknowledged when it is handed over, so that closing
can tell whether everything arrived. libzmq's linger cannot: a receiver at its high-water mark
loses the tail of an ipc connection that its peer closes. An acknowledgement also says how many
bytes more the receiver takes, so that a slow one bounds its sender's memory and its own. Large
values go as streams, see ``zfast.transport.streams``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from zfast import _core
from zfast.deadline import Deadline
from zfast.errors import (
    ChannelClosedError,
    ConfigError,
    RecvTimeoutError,
    SendTimeoutError,
    TransportError,
)
from zfast.transport.farewell import Farewell
from zfast.transport.inbox import Content, Inbox
from zfast.transport.link_options import LinkOptions
from zfast.transport.lookout import LOOK_AGAIN_S, Lookout
from zfast.transport.outbox import Outbox
from zfast.transport.outgoing_streams import OutgoingStream
from zfast.transport.peer import Kind, Peer
from zfast.transport.port import Port

#: How old what is known of the peers may be when a message is sent without a look: each look is
#: some system calls. What is sent to a peer that has gone meanwhile counts as not received.
FRESH_S = 0.01


class Link:
    """One side of a link. Arguments and errors as ``Port``. Threads: one at a time.

    Attributes:
        peers: By routing id; a DEALER's only one under None.
        queue: What came and was not taken yet, see ``Inbox``.
        turn: For the caller: who may use the link now.
        close, abort: See ``Farewell``.
    """

    def __init__(self, url: str, *, bound: bool, options: LinkOptions) -> None:
        self._port = Port(url, bound=bound, options=options)
        self.endpoint = self._port.endpoint
        self.bound = bound
        self.shares_memory = self._port.shares_memory
        self.peers: dict[bytes | None, Peer] = {}
        self._outbox = Outbox(self._port, self.peers)
        self._inbox = Inbox(self._port, self._outbox, options)
        self._lookout = Lookout(self._port, self._inbox, self._outbox)
        self._farewell = Farewell(self._port, self._inbox, self._outbox, self._lookout)
        self.queue = self._inbox.queue
        self.close = self._farewell.close
        self.abort = self._farewell.abort
        self.acknowledge_all = self._outbox.acknowledge_all
        self.turn = _core.Turn()
        self._checksum = options.checksum
        if not bound:
            self._outbox.tell(self.peers[None], Kind.HELLO)

    def open_lane(
        self, decode: Callable[[_core.Message, bool], Any], acknowledge_later: Callable[[], None]
    ) -> _core.Lane:
        """The quick way for lone messages; it takes its turn by itself."""
        return _core.Lane(
            self._port.socket,
            self.bound,
            self.peers,
            self._inbox,
            self._outbox,
            self.turn,
            value_kind=Kind.VALUE,
            batch_kind=Kind.BATCH,
            look=self._look,
            decode=decode,
            acknowledge_later=acknowledge_later,
            admits=self._port.admits,
        )

    @property
    def closed(self) -> bool:
        """True after ``close`` or ``abort``."""
        return self._port.closed

    @property
    def owes(self) -> bool:
        """Whether a peer has not heard yet of a message that was read."""
        return any(peer.acknowledgement_is_due for peer in self.peers.values())

    # ---- sending -----------------------------------------------------------------------

    def choose_peer(self, to: bytes | None, deadline: Deadline) -> Peer:
        """The peer to send to: ``to``, or the only one, waited for if there is none yet."""
        if not self.bound:
            return self.peers[None]
        while True:
            self._inbox.take()
            if to is not None:
                if to not in self.peers:
                    raise ChannelClosedError(f"{self.endpoint}: no peer {to!r} is connected")
                return self.peers[to]
            if len(self.peers) == 1:
                return next(iter(self.peers.values()))
            if self.peers:
                raise ConfigError(
                    f"{self.endpoint}: {len(self.peers)} peers are connected",
                    hint="name one of channel.peers with to=",
                )
            if deadline.expired:
                raise SendTimeoutError(
                    f"{self.endpoint}: no peer connected in {deadline.timeout} s"
                )
            self._port.poll(_core.POLLIN, deadline.left())

    def send_small(self, peer: Peer, header: bytes, deadline: Deadline) -> None:
        """Send one value that is all header, waiting for room."""

        def attempt() -> bool:
            return _core.send_value(self._port.socket, peer, Kind.VALUE, header)

        self._send(peer, attempt, len(header), deadline)

    def send_message(
        self,
        peer: Peer,
        header: bytes,
        buffers: list[memoryview],
        nbytes: int,
        deadline: Deadline,
        *,
        copy: bool,
        tracker: _core.SendTracker,
    ) -> None:
        """Send one value as one message, waiting for room. See ``_core.send_message``."""

        def attempt() -> bool:
            sent = _core.send_message(
                self._port.socket,
                Kind.VALUE,
                header,
                buffers,
                request_id=peer.received,
                routing_id=peer.routing_id,
                copy=copy,
                tracker=tracker,
            )
            if sent:
                peer.count_sent(nbytes)
            return sent

        self._send(peer, attempt, nbytes, deadline)

    def send_batch(
        self, peer: Peer, payloads: list[object], start: int, nbytes: int, count: int,
        deadline: Deadline,
    ) -> None:  # fmt: skip
        """Send ``count`` payloads, ``nbytes`` in all, as one batch, waiting for room."""

        def attempt() -> bool:
            return _core.send_batch(
                self._port.socket, peer, Kind.BATCH, payloads, start, count, nbytes
            )

        progress = f"{start} of {len(payloads)} payloads were sent"
        self._send(peer, attempt, nbytes, deadline, progress)

    def _send(
        self,
        peer: Peer,
        attempt: Callable[[], bool],
        nbytes: int,
        deadline: Deadline,
        progress: str = "",
    ) -> None:
        is_fresh = self.turn.fresh and self._outbox.idle
        while True:
            if not is_fresh:
                self._look()
            may_send = peer.may_send(nbytes) and self._port.connected
            if may_send and self._try(peer, attempt):
                return
            if is_fresh:
                is_fresh = False
                continue
            if deadline.expired:
                raise self._nobody_took_it(deadline, progress)
            # An unconnected DEALER has room, a ROUTER cannot be polled for room at one peer.
            waits_for_room = may_send and not self.bound
            events = _core.POLLIN | (_core.POLLOUT if waits_for_room else 0)
            self._port.poll(events, deadline.left(LOOK_AGAIN_S if self.bound else None))

    def _look(self) -> None:
        """Take what has come, see whether the peer is there, send what streams may send."""
        self._inbox.take()
        self._lookout.raise_if_gone()
        self._outbox.pump()
        if self._port.connected:
            self.turn.stay_fresh(FRESH_S)

    def _try(self, peer: Peer, attempt: Callable[[], bool]) -> bool:
        try:
            return attempt()
        except TransportError as error:
            # That is how a ROUTER learns that the peer has gone.
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._outbox.lose(peer)
            self.peers.pop(peer.routing_id, None)
            raise ChannelClosedError(
                f"{self.endpoint}: peer {peer.routing_id!r} has gone",
                errno=error.errno,
                hint="wait for it to connect again",
            ) from error

    def _nobody_took_it(self, deadline: Deadline, progress: str = "") -> SendTimeoutError:
        return SendTimeoutError(
            f"{self.endpoint}: no peer took the message in {deadline.timeout} s",
            detail=progress or None,
            hint="is the other side running, and does it receive?",
        )

    # ---- streams -----------------------------------------------------------------------

    def open_stream(
        self, peer: Peer, buffers: list[memoryview], tracker: _core.SendTracker,
        deadline: Deadline, *, batch: bool,
    ) -> OutgoingStream:  # fmt: skip
        """Queue a stream once the peer is connected, and send of it what may be sent at once."""
        self._look()
        while not self._port.connected:
            if deadline.expired:
                raise self._nobody_took_it(deadline, "0 bytes were sent")
            self._port.poll(_core.POLLIN, deadline.left())
            self._look()
        stream = peer.outgoing.open(buffers, tracker, batch=batch, checksum=self._checksum)
        peer.sent += 1
        self._outbox.pump()
        return stream

    def finish_stream(self, peer: Peer, stream: OutgoingStream, deadline: Deadline) -> None:
        """Send all of a stream. Raises what ended it, or SendTimeoutError."""
        while not stream.ended:
            self._advance(stream, deadline)
        if stream.failure is not None:
            if not peer.gone and self._port.poll(_core.POLLIN, LOOK_AGAIN_S):
                self._inbox.take()  # a peer that closes says goodbye just after it refused
            failed = ChannelClosedError if peer.gone else TransportError
            raise failed(f"{self.endpoint}: the value was not delivered: {stream.failure}")

    def _advance(self, stream: OutgoingStream, deadline: Deadline) -> None:
        """Send of a stream what may be sent, or wait until more may be."""
        self._inbox.take()
        self._outbox.pump()
        if stream.ended:
            return
        if deadline.expired:
            raise self._nobody_took_it(
                deadline, f"{stream.offset} of {stream.nbytes} bytes were sent"
            )
        if not self._lookout.take_soon(deadline):
            self._lookout.notice_lost_connection()
            if not stream.ended:
                self._lookout.wait_for_news(deadline)

    def cancel_stream(self, peer: Peer, stream: OutgoingStream) -> None:
        """Send no more of it, and count it no more."""
        peer.sent -= 1
        peer.outgoing.cancel(stream, "it was cancelled")
        self._outbox.pump()

    def wait_for(self, tracker: _core.SendTracker, deadline: Deadline) -> bool:
        """Wait until libzmq has let go of a message's buffers, taking what comes meanwhile."""
        while not tracker.wait(deadline.left(LOOK_AGAIN_S)):
            if deadline.expired:
                return False
            self._inbox.take()
            self._outbox.pump()
        return True

    # ---- receiving ---------------------------------------------------------------------

    def receive(self, deadline: Deadline) -> Content:
        """Wait for the next value or batch. See ``owes`` for its acknowledgement."""
        if not self.queue:
            self.wait(deadline)
        return self._inbox.next()

    def wait(self, deadline: Deadline) -> None:
        """Wait until the queue has a message."""
        if self.owes:  # perhaps it is there, and nobody need be told yet
            self._inbox.take(limit=1)
        while not self.queue:
            self.acknowledge_all()
            if self._lookout.take_soon(deadline):
                continue
            self._lookout.raise_if_gone()
            self._outbox.pump()
            if deadline.expired:
                self._inbox.take(limit=1)
                if self.queue:
                    return
                raise RecvTimeoutError(
                    f"{self.endpoint}: nothing came in {deadline.timeout} s",
                    hint="is the other side sending?",
                )
            self._lookout.wait_for_news(deadline)
            self._inbox.take(limit=1)
