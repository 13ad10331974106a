"""Delivery: what became of a value that was sent without waiting for it."""

from __future__ import annotations

from zfast import _core
from zfast.deadline import Deadline
from zfast.errors import ChannelClosedError, TransportError
from zfast.transport.link_use import LinkUse
from zfast.transport.lookout import LOOK_AGAIN_S
from zfast.transport.outgoing_streams import OutgoingStream
from zfast.transport.peer import Peer


class Delivery(_core.SendTracker):
    """What ``Channel.send_view`` returns: tells when the value's buffers are free again.

    Threads: ``done`` and ``wait`` from any. ``wait`` sends for the channel when no other thread
    is using it; else that one sends.
    """

    def __init__(self, use: LinkUse) -> None:
        self._use = use
        self._peer: Peer | None = None
        self._stream: OutgoingStream | None = None

    def begin(self, peer: Peer, stream: OutgoingStream) -> None:
        """Follow a stream; the channel calls this."""
        self._peer, self._stream = peer, stream

    def wait(self, timeout: float | None = None) -> bool:
        """Send what is left and wait until ``done``, at most ``timeout`` seconds.

        Returns:
            ``done``. Until then, the buffers must not change.

        Raises:
            TransportError: The value will not arrive: the peer refused it or has gone, or the
                channel was closed. What is borrowed is given back soon; wait again for that.
        """
        deadline = Deadline(timeout)
        while not self.done:
            self._send_rest(deadline)
            if super().wait(deadline.left(LOOK_AGAIN_S)) or deadline.expired:
                break
        self._raise_failure()
        return self.done

    def cancel(self) -> None:
        """Send no more of the value; the receiver drops what it has. Too late when it is out.

        What libzmq has of it stays borrowed until ``done``.
        """
        stream, peer = self._stream, self._peer
        if stream is not None and peer is not None and not stream.ended:
            with self._use as link:
                link.cancel_stream(peer, stream)
                self._stream = None

    def _send_rest(self, deadline: Deadline) -> None:
        """Send what is left, unless another thread uses the channel."""
        stream, peer = self._stream, self._peer
        if stream is None or peer is None or stream.ended or not self._use.try_enter():
            return
        try:
            self._use.link.finish_stream(peer, stream, deadline)
        except TransportError:
            pass  # _raise_failure tells
        finally:
            self._use.__exit__(None, None, None)

    def _raise_failure(self) -> None:
        stream, peer = self._stream, self._peer
        if stream is None or peer is None or stream.failure is None:
            return
        self._stream = None
        peer.sent -= 1  # told now: closing the channel need not tell again
        failed = ChannelClosedError if peer.gone else TransportError
        raise failed(f"{self._use.link.endpoint}: the value was not delivered: {stream.failure}")
