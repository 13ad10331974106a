"""Whether a connecting socket has its peer, from libzmq's own events."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from zfast import _core


class ConnectionMonitor:
    """Watches one DEALER that connects over ipc or tcp; inproc has no such events.

    Attributes:
        socket: Receives when there is news; belongs to the thread of the monitored socket.
    """

    def __init__(self, monitored: zmq.Socket[bytes]) -> None:
        self._monitored = monitored
        self._connected = False
        self._lost = False
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self.socket = monitored.get_monitor_socket(events)

    @property
    def connected(self) -> bool:
        """The handshake is done and the connection stands."""
        self._read()
        return self._connected

    @property
    def lost(self) -> bool:
        """A connection that once stood has ended, for good: the next would be another peer's."""
        self._read()
        return self._lost

    def _read(self) -> None:
        while not self._lost and _core.poll(self.socket, _core.POLLIN, 0):
            event = recv_monitor_message(self.socket)["event"]
            self._lost = event == zmq.EVENT_DISCONNECTED and self._connected
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def close(self) -> None:
        """Stop monitoring."""
        if not self.socket.closed:
            self._monitored.disable_monitor()
            self.socket.close(linger=0)
