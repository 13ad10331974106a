"""Channel: Python values and batches of bytes between two processes, without Prefect."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zfast import _core
from zfast.codec import Payload, decode, encode
from zfast.deadline import Deadline
from zfast.errors import ChannelClosedError, ConfigError, SendTimeoutError
from zfast.link import DEFAULT_HWM, Link

if TYPE_CHECKING:
    from typing_extensions import Self


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
        # Over inproc libzmq hands the receiver the sender's own memory.
        self._shares_memory = link.endpoint.startswith("inproc:")
        self._busy = threading.Lock()

    @classmethod
    def bind(cls, endpoint: str, *, hwm: int = DEFAULT_HWM, insecure: bool = False) -> Self:
        """Open the side that peers connect to.

        Args:
            endpoint: ``inproc://name``, ``ipc:///path`` or ``tcp://host:port``.
            hwm: High-water mark in messages, for each peer and direction.
            insecure: Allow unencrypted tcp, on loopback only.

        Raises:
            ConfigError: The endpoint is malformed or unprotected.
            TransportError: It cannot be bound; ``errno`` says why.
        """
        return cls(Link(endpoint, bound=True, hwm=hwm, insecure=insecure))

    @classmethod
    def connect(cls, endpoint: str, *, hwm: int = DEFAULT_HWM, insecure: bool = False) -> Self:
        """Open the side that connects; the bound side may come later. Arguments as ``bind``."""
        return cls(Link(endpoint, bound=False, hwm=hwm, insecure=insecure))

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
        return [peer.routing_id for peer in self._link.peers.values() if peer.routing_id]

    def send(self, value: object, *, timeout: float | None = None, to: bytes | None = None) -> None:
        """Send one value; on return the caller may change it again.

        Args:
            value: Anything the codec takes. Large buffers are not copied, except over inproc.
            timeout: Seconds to wait for a peer with room in its queue, and for libzmq to have
                read the buffers; None waits for ever.
            to: Routing id of the peer; needed on the bound side when there are several.

        Raises:
            SendTimeoutError: No peer took it in time. If ``detail`` says that it is under way,
                its buffers stay borrowed until it is through or the channel closes.
            CodecError: The value cannot be encoded; nothing was sent.
            ChannelClosedError, TransportError: The channel cannot be used.
        """
        deadline = Deadline(timeout)
        tracker = self._send_value(value, deadline, to, copy=self._shares_memory)
        if not tracker.wait(deadline.left()):
            raise SendTimeoutError(
                f"{self.endpoint}: the peer did not take the whole value in {timeout} s",
                detail="it is under way and its buffers are still borrowed",
                hint="do not change the value before the channel is closed",
            )

    def send_view(
        self, value: object, *, timeout: float | None = None, to: bytes | None = None
    ) -> _core.SendTracker:
        """Send one value and return at once, its large buffers borrowed.

        The buffers must not change until the returned tracker is ``done``; over inproc that is
        when the receiver has let go of the value. Arguments and errors as ``send``.
        """
        return self._send_value(value, Deadline(timeout), to, copy=False)

    def _send_value(
        self, value: object, deadline: Deadline, to: bytes | None, *, copy: bool
    ) -> _core.SendTracker:
        payload = encode(value)
        tracker = _core.SendTracker()
        with self._in_use() as link:
            link.send_message(
                link.choose_peer(to, deadline),
                (payload.header, payload.buffers),
                deadline,
                copy=copy,
                tracker=tracker,
            )
        return tracker

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
        start = 0
        with self._in_use() as link:
            while start < len(items):
                start += link.send_batch(link.choose_peer(to, deadline), items, start, deadline)

    def recv(self, *, timeout: float | None = None, copy: bool = False) -> Any:
        """Receive the next value, or the next ``Batch`` if the peer used ``send_many``.

        Args:
            timeout: Seconds; None waits for ever.
            copy: Give private, writable arrays instead of read-only views.

        Raises:
            RecvTimeoutError: Nothing came in time.
            ProtocolError: A peer sent bytes that are not ours; they are dropped.
            CodecError: A value came that cannot be decoded here; it is dropped.
            ChannelClosedError: The peer has closed and nothing is left (connected side).
        """
        with self._in_use() as link:
            link.wait(Deadline(timeout))
            message = link.next()
        if isinstance(message, _core.Batch):
            return message
        return decode(Payload(bytes(message.body), message.buffers), copy=copy)

    def recv_many(self, *, timeout: float | None = None) -> _core.Batch:
        """Receive the next batch: a sequence of read-only views over one buffer, with its arrays.

        Raises:
            ConfigError: The next message is a single value; ``recv`` will give it.
            RecvTimeoutError, ProtocolError, ChannelClosedError: As ``recv``.
        """
        with self._in_use() as link:
            link.wait(Deadline(timeout))
            if isinstance(link.inbox[0][1], _core.Batch):
                message = link.next()
                assert isinstance(message, _core.Batch)
                return message
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
        with self._in_use() as link:
            unread = link.close(Deadline(timeout))
        if unread:
            raise ChannelClosedError(
                f"{self.endpoint}: closed before everything was received",
                detail=f"{unread} messages are unacknowledged and may be lost",
            )

    def abort(self) -> None:
        """Close at once; what was not received yet may be lost."""
        if not self.closed:
            with self._in_use() as link:
                link.abort()

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

    @contextmanager
    def _in_use(self) -> Iterator[Link]:
        if not self._busy.acquire(blocking=False):
            raise ConfigError(
                f"{self.endpoint}: two threads use the channel at once",
                hint="give each thread a channel of its own",
            )
        try:
            if self._link.closed:
                raise ChannelClosedError(f"{self.endpoint}: the channel is closed")
            yield self._link
        finally:
            self._busy.release()
