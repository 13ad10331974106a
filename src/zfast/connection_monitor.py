"""Whether a connecting socket has its peer, from libzmq's own events."""

from __future__ import annotations

from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from zfast import _core

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


class ConnectionMonitor:
    """Watches one socket that connects over ipc or tcp; inproc has no such events.

    Args:
        only_first: The first connection that stands is the only one that counts: what comes after
            its end is another peer's, and is not read.
        on_connected: Given the descriptor of each connection, before its handshake.

    Attributes:
        connected: The handshake is done and the connection stands.
        lost: The only connection that counts has ended.
        refused: The other side does not let our key in.
        failures: Handshakes in a row that came to nothing for another reason.
        socket: Receives when there is news; belongs to the thread of the monitored socket.
    """

    def __init__(
        self,
        monitored: zmq.Socket[bytes],
        *,
        only_first: bool = False,
        on_connected: Callable[[int], None] | None = None,
    ) -> None:
        self._monitored = monitored
        self._only_first = only_first
        self._on_connected = on_connected
        self.connected = False
        self.lost = False
        self.refused = False
        self.failures = 0
        events = _EVENTS if on_connected is None else _EVENTS | zmq.EVENT_CONNECTED
        self.socket: zmq.Socket[bytes] = monitored.get_monitor_socket(events)

    def read(self) -> int:
        """Take what news there is, as libzmq's events; the attributes change by this alone.

        Raises:
            TransportError: The context ends.
        """
        news = 0
        while not self.lost and _core.poll(self.socket, _core.POLLIN, 0):
            message = recv_monitor_message(self.socket)
            event = message["event"]
            if event == zmq.EVENT_CONNECTED:
                if self._on_connected is not None:
                    self._on_connected(message["value"])
                continue
            news |= event
            self.lost = self._only_first and self.connected and event == zmq.EVENT_DISCONNECTED
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.refused |= event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            # The end of the connection comes right behind its failed handshake.
            if event != zmq.EVENT_DISCONNECTED:
                self.failures = 0 if self.connected else self.failures + 1
        return news

    def close(self) -> None:
        """Stop monitoring; before the monitored socket is closed."""
        if not self.socket.closed:
            self._monitored.disable_monitor()
            self.socket.close(linger=0)
