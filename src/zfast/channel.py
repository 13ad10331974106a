"""Channel: Python values and batches of bytes between two processes, without Prefect."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zfast import _core
from zfast.codec import Payload, decode, decode_header, encode
from zfast.deadline import Deadline
from zfast.errors import ChannelClosedError, ConfigError, SendTimeoutError, TransportError
from zfast.transport.acknowledger import acknowledger
from zfast.transport.batch_writer import (
    DEFAULT_MAX_COUNT,
    DEFAULT_MAX_DELAY_US,
    DEFAULT_MAX_NBYTES,
    BatchWriter,
)
from zfast.transport.delivery import Delivery
from zfast.transport.incoming_streams import StreamedValue
from zfast.transport.link import Link
from zfast.transport.link_options import DEFAULT_HWM, DEFAULT_WINDOW_NBYTES, LinkOptions
from zfast.transport.link_use import LinkUse
from zfast.transport.peer import Kind, Peer

if TYPE_CHECKING:
    from typing_extensions import Self

    from zfast.security.client_security import ClientSecurity
    from zfast.security.server_security import ServerSecurity

#: A value or batch above this is streamed.
PLAIN_MAX_NBYTES = 1 << 20


class Channel:
    """One end of a two-way channel. Make one with ``Channel.bind`` or ``Channel.connect``.

    The bound side takes any number of peers and receives from all of them in turn.

    Threads: one at a time; a second thread inside a call gets a ConfigError. Not usable in a
    forked child. Received arrays are read-only unless ``copy=True``.

    Example:
        >>> with Channel.bind("inproc://doc") as rx, Channel.connect("inproc://doc") as tx:
        ...     tx.send({"answer": 42})
        ...     rx.recv(timeout=1.0)
        {'answer': 42}
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._use = LinkUse(link)
        self._lane = link.open_lane(_decoded, self._remember)
        self._writers: list[BatchWriter] = []

    @classmethod
    def bind(
        cls,
        endpoint: str,
        *,
        hwm: int = DEFAULT_HWM,
        window_nbytes: int = DEFAULT_WINDOW_NBYTES,
        memory_nbytes: int | None = None,
        checksum: bool = False,
        insecure: bool = False,
        security: ServerSecurity | None = None,
    ) -> Self:
        """Open the side that peers connect to.

        Args:
            endpoint: ``inproc://name``, ``ipc:///path`` or ``tcp://host:port``.
            hwm: High-water mark in messages, for each peer and direction.
            window_nbytes: What may be under way from one peer: sent, and not yet received by a
                call of this channel. It lies in the queues of both sides. At least 16 MiB.
            memory_nbytes: What this side holds of values above 16 MiB that ``recv`` has not taken
                yet. A larger value is refused, one that finds others in its place waits for them.
                None is half of the machine's memory.
            checksum: Send digests (XXH3) with values above 1 MiB; the receiver checks them.
            insecure: Allow unencrypted tcp, on loopback only.
            security: Keys, for tcp: peers whose role may ``put`` come in, and nobody else. Where
                its policy has issuers, their tokens are taken in any call of this channel.

        Raises:
            ConfigError: The endpoint is malformed or unprotected, or a limit is out of range.
            TransportError: It cannot be bound; ``errno`` says why.
        """
        options = _options(hwm, window_nbytes, memory_nbytes, checksum, insecure, security)
        return cls(Link(endpoint, bound=True, options=options))

    @classmethod
    def connect(
        cls,
        endpoint: str,
        *,
        hwm: int = DEFAULT_HWM,
        window_nbytes: int = DEFAULT_WINDOW_NBYTES,
        memory_nbytes: int | None = None,
        checksum: bool = False,
        insecure: bool = False,
        security: ClientSecurity | None = None,
    ) -> Self:
        """Open the side that connects; the bound side may come later. Arguments as ``bind``.

        Over tcp with keys, every call may raise HandshakeError: the bound side refuses our key, or
        has none that we trust. With a token, see ``ClientSecurity``, the bound side has to be there
        and in a call: it is brought now, for up to 10 s. TokenError says that it is refused.
        """
        options = _options(hwm, window_nbytes, memory_nbytes, checksum, insecure, security)
        return cls(Link(endpoint, bound=False, options=options))

    @property
    def endpoint(self) -> str:
        """The endpoint, with the port the system chose when it was ``*``."""
        return self._link.endpoint

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return self._link.closed

    @property
    def peers(self) -> list[bytes]:
        """On the bound side: routing ids of the peers that were heard of and have not left."""
        return [
            peer.routing_id
            for peer in self._link.peers.values()
            if peer.routing_id and not peer.gone
        ]

    def send(self, value: object, *, timeout: float | None = None, to: bytes | None = None) -> None:
        """Send one value; on return the caller may change it again.

        Values arrive in the order in which ``send`` and ``send_many`` were called. One above
        1 MiB is streamed, and one above 16 MiB not before the peer receives: two threads or
        processes are needed then. Large buffers are not copied, except over inproc.

        Args:
            value: Anything the codec takes.
            timeout: Seconds to wait for a peer with room, and for libzmq to have read the
                buffers; None waits for ever.
            to: Routing id of the peer; needed on the bound side when there are several.

        Raises:
            SendTimeoutError: No peer took it in time; what it has of the value, it drops. If
                ``detail`` says so, the buffers stay borrowed until the channel closes.
            CodecError: The value cannot be encoded; nothing was sent.
            TransportError: The peer refused the value; the message says why.
            ChannelClosedError: The channel is closed, or the peer has gone.
        """
        if to is None and not self._writers and self._lane.send(value, timeout):
            return
        deadline = Deadline(timeout)
        payload = encode(value)
        with self._flushed(deadline) as link:
            peer = link.choose_peer(to, deadline)
            if not payload.buffers and len(payload.header) <= PLAIN_MAX_NBYTES:
                link.send_small(peer, payload.header, deadline)
                return
            tracker = _core.SendTracker()
            if link.shares_memory or payload.nbytes <= PLAIN_MAX_NBYTES:
                link.send_message(
                    peer,
                    payload.header,
                    payload.buffers,
                    payload.nbytes,
                    deadline,
                    copy=link.shares_memory,
                    tracker=tracker,
                )
            else:
                buffers = [memoryview(payload.header), *payload.buffers]
                self._stream(link, peer, buffers, tracker, deadline)
            if not tracker.done and not link.wait_for(tracker, deadline):
                raise SendTimeoutError(
                    f"{self.endpoint}: the peer did not take the whole value in {timeout} s",
                    detail="it is under way and its buffers are still borrowed",
                    hint="do not change the value before the channel is closed",
                )

    def _stream(
        self,
        link: Link,
        peer: Peer,
        buffers: list[memoryview],
        tracker: _core.SendTracker,
        deadline: Deadline,
        *,
        batch: bool = False,
    ) -> None:
        stream = link.open_stream(peer, buffers, tracker, deadline, batch=batch)
        try:
            link.finish_stream(peer, stream, deadline)
        except BaseException as error:
            # Also what a signal handler raised: nobody would send the rest.
            link.cancel_stream(peer, stream)
            if isinstance(error, SendTimeoutError) and not tracker.done:
                error.hint = "do not change the value before the channel is closed"
            raise

    def send_view(
        self, value: object, *, timeout: float | None = None, to: bytes | None = None
    ) -> Delivery:
        """Send one value and return at once, its large buffers borrowed.

        The buffers must not change until the returned delivery is ``done``; over inproc that is
        when the receiver has let go of the value. A value above 1 MiB is streamed: what the peer
        has room for goes now, the rest in later calls of this channel – any of them – and in the
        delivery's ``wait``. So smaller values that are sent meanwhile arrive before it, and
        several streams share the connection evenly. Arguments and errors as ``send``; ``timeout``
        is for what goes now.
        """
        deadline = Deadline(timeout)
        payload = encode(value)
        delivery = Delivery(self._use)
        with self._flushed(deadline) as link:
            peer = link.choose_peer(to, deadline)
            if link.shares_memory or payload.nbytes <= PLAIN_MAX_NBYTES:
                link.send_message(
                    peer,
                    payload.header,
                    payload.buffers,
                    payload.nbytes,
                    deadline,
                    copy=False,
                    tracker=delivery,
                )
            else:
                buffers = [memoryview(payload.header), *payload.buffers]
                stream = link.open_stream(peer, buffers, delivery, deadline, batch=False)
                delivery.begin(peer, stream)
        return delivery

    def send_many(
        self, payloads: Sequence[Any], *, timeout: float | None = None, to: bytes | None = None
    ) -> None:
        """Send many small bytes-like payloads, packed into batches; each is copied once.

        They arrive in order as ``Batch`` objects of up to 1 MiB or 65,536 payloads.

        Raises:
            SendTimeoutError: As ``send``; ``detail`` says how many payloads were sent.
        """
        if isinstance(payloads, (str, bytes, bytearray, memoryview)):
            raise ConfigError(
                "send_many takes a sequence of bytes-like payloads, not one",
                hint="use send() for a single value",
            )
        items = payloads if isinstance(payloads, list) else list(payloads)
        deadline = Deadline(timeout)
        with self._flushed(deadline) as link:
            self._send_batches(link, items, to, deadline)

    def _send_batches(
        self, link: Link, items: list[Any], to: bytes | None, deadline: Deadline
    ) -> None:
        start = 0
        while start < len(items):
            peer = link.choose_peer(to, deadline)
            count, nbytes = _core.plan_batch(items, start)
            if link.shares_memory or nbytes <= PLAIN_MAX_NBYTES:
                link.send_batch(peer, items, start, nbytes, count, deadline)
            else:  # one large payload: too large for a frame
                packed = memoryview(_core.pack(items[start : start + count], kind=Kind.BATCH))
                tracker = _core.SendTracker()
                self._stream(link, peer, [packed], tracker, deadline, batch=True)
            start += count

    def batching(
        self,
        *,
        max_nbytes: int = DEFAULT_MAX_NBYTES,
        max_count: int = DEFAULT_MAX_COUNT,
        max_delay_us: float = DEFAULT_MAX_DELAY_US,
        timeout: float | None = None,
        to: bytes | None = None,
    ) -> BatchWriter:
        """Send payloads one by one that travel as batches: ``writer.send(payload)``.

        A payload goes at once if nothing is gathered and the last batch is ``max_delay_us`` ago:
        a lone one waits for nothing. Others are gathered, and sent when they have ``max_nbytes``
        or are ``max_count``; when the last batch is ``max_delay_us`` ago; before any other call
        of this channel, so that the order is kept; and by ``flush`` and ``close``. A delay of 0
        sends each at once. The receiver uses ``recv_many``.

        Args:
            max_nbytes: From 1 byte to 1 MiB. A larger payload goes by itself.
            max_count: From 1 to 65,536 payloads.
            max_delay_us: In microseconds; the system's timers may add some tens.
            timeout: Seconds that ``writer.send`` waits for a peer with room; None is for ever.
            to: As for ``send``.
        """

        def transmit(payloads: list[bytes], *, timeout: float | None) -> None:
            deadline = Deadline(timeout)
            with self._use as link:
                self._send_batches(link, payloads, to, deadline)

        def try_transmit(payloads: list[bytes]) -> bool:
            if not self._use.try_between():
                return False
            try:
                if self._link.closed:
                    raise ChannelClosedError(f"{self.endpoint}: the channel is closed")
                self._send_batches(self._link, payloads, to, Deadline(0))
            except SendTimeoutError:
                return False
            finally:
                self._use.end_between()
            return True

        writer = BatchWriter(
            transmit,
            try_transmit,
            max_nbytes=max_nbytes,
            max_count=max_count,
            max_delay_us=max_delay_us,
            timeout=timeout,
        )
        self._writers = [*(w for w in self._writers if not w.closed), writer]
        return writer

    def recv(self, *, timeout: float | None = None, copy: bool = False) -> Any:
        """Receive the next value, or the next ``Batch`` if the peer used ``send_many``.

        Arrays of a value above 1 MiB lie in warm memory that goes back to a pool of this process
        with their last view (``zfast.transport.receive_pool``).

        Args:
            timeout: Seconds; None waits for ever. What has come of a larger value is kept.
            copy: Give private, writable arrays instead of read-only views.

        Raises:
            RecvTimeoutError: Nothing came in time.
            ProtocolError: A peer sent bytes that are not ours; they are dropped.
            CodecError: A value came that cannot be decoded here; it is dropped.
            ChannelClosedError: The peer has closed and nothing is left (connected side).
        """
        if not self._writers:
            value = self._lane.recv(timeout, copy)
            if value is not _core.NOTHING:
                return value
        deadline = Deadline(timeout)
        with self._flushed(deadline) as link:
            content = link.receive(deadline)
        self._acknowledge_in_a_while()
        return content if isinstance(content, _core.Batch) else _decoded(content, copy)

    def recv_many(self, *, timeout: float | None = None) -> _core.Batch:
        """Receive the next batch: a sequence of read-only views over one buffer, with its arrays.

        Raises:
            ConfigError: The next message is a single value; ``recv`` will give it.
            RecvTimeoutError, ProtocolError, ChannelClosedError: As ``recv``.
        """
        if not self._writers:
            batch = self._lane.recv_batch(timeout)
            if batch is not None:
                return batch
        deadline = Deadline(timeout)
        with self._flushed(deadline) as link:
            link.wait(deadline)
            if not isinstance(link.queue[0].content, (_core.Message, StreamedValue)):
                content = link.receive(deadline)
                self._acknowledge_in_a_while()
                assert isinstance(content, _core.Batch)
                return content
        raise ConfigError(
            f"{self.endpoint}: the next message is a value, not a batch",
            hint="take it with recv()",
        )

    def close(self, *, timeout: float | None = 30.0) -> None:
        """Wait until all that was sent is received, then close. A second call does nothing.

        Raises:
            ChannelClosedError: A peer closed with messages unread, or did not read them within
                ``timeout`` seconds; ``detail`` says how many. It is closed all the same.
        """
        if self.closed:
            return
        deadline = Deadline(timeout)
        try:
            with self._flushed(deadline) as link:
                unread = link.close(deadline)
        except SendTimeoutError:
            self.abort()
            raise
        for writer in self._writers:
            writer.abort()
        if unread:
            raise ChannelClosedError(
                f"{self.endpoint}: closed before everything was received",
                detail=f"{unread} messages are unacknowledged and may be lost",
            )

    def abort(self) -> None:
        """Close at once; what was not received yet may be lost."""
        if not self.closed:
            with self._use as link:
                link.abort()
            for writer in self._writers:
                writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        side = "bound to" if self._link.bound else "connected to"
        return f"<Channel {'closed, was ' if self.closed else ''}{side} {self.endpoint}>"

    def _flushed(self, deadline: Deadline) -> LinkUse:
        """To enter for a call, after what batch writers have gathered: it was sent before."""
        for writer in self._writers:
            writer.flush(timeout=deadline.left())
        return self._use

    def _acknowledge_in_a_while(self) -> None:
        if not self._lane.reminded and self._link.owes:
            self._lane.reminded = True
            self._remember()

    def _remember(self) -> None:
        acknowledger.remember(self)

    def acknowledge_late(self) -> None:
        """Acknowledge what was read, if no call of this channel is about to; never blocks."""
        self._lane.reminded = False
        if not self._use.try_between():
            return
        try:
            if not self.closed:
                self._link.acknowledge_all()
                if self._link.owes:  # the peer had no room
                    self._acknowledge_in_a_while()
        except TransportError:
            pass  # the next call of the channel says so
        finally:
            self._use.end_between()


def _decoded(content: _core.Message | StreamedValue, copy: bool) -> Any:
    if isinstance(content, _core.Message):
        if content.flags & _core.FLAG_BYTES:
            return bytes(content.body)
        if not content.buffers:
            return decode_header(bytes(content.body))
        return decode(Payload(bytes(content.body), content.buffers), copy=copy)
    header, *buffers = content.buffers
    if not copy:
        buffers = [buffer.toreadonly() for buffer in buffers]
    return decode(Payload(bytes(header), buffers), own=copy)


def _options(
    hwm: int,
    window_nbytes: int,
    memory_nbytes: int | None,
    checksum: bool,
    insecure: bool,
    security: ServerSecurity | ClientSecurity | None,
) -> LinkOptions:
    if memory_nbytes is None:
        memory_nbytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return LinkOptions(hwm, window_nbytes, memory_nbytes, checksum, insecure, security)
