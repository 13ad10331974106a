"""Whether a connecting socket has its peer, from libzmq's own events."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from zfast import _core
from zfast.transport.send_buffer import widen_send_buffer

_HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class ConnectionMonitor:
    """Watches one DEALER that connects over ipc or tcp; inproc has no such events.

    Attributes:
        connected: The handshake is done and the connection stands.
        lost: A connection that once stood has ended, for good: the next would be another peer's.
        refused: The other side does not let our key in.
        failures: Handshakes in a row that came to nothing for another reason.
        socket: Receives when there is news; belongs to the thread of the monitored socket.
    """

    def __init__(self, monitored: zmq.Socket[bytes]) -> None:
        self._monitored = monitored
        self.connected = False
        self.lost = False
        self.refused = False
        self.failures = 0
        events = zmq.EVENT_CONNECTED | _HANDSHAKES | zmq.EVENT_DISCONNECTED
        self.socket = monitored.get_monitor_socket(events)

    def read(self) -> None:
        """Take what news there is; the attributes change by this alone."""
        while not self.lost and _core.poll(self.socket, _core.POLLIN, 0):
            message = recv_monitor_message(self.socket)
            event = message["event"]
            if event == zmq.EVENT_CONNECTED:
                widen_send_buffer(message["value"])
                continue
            self.lost = event == zmq.EVENT_DISCONNECTED and self.connected
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.refused |= event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            # The end of the connection comes right behind its failed handshake.
            if event != zmq.EVENT_DISCONNECTED:
                self.failures = 0 if self.connected else self.failures + 1

    def close(self) -> None:
        """Stop monitoring."""
        if not self.socket.closed:
            self._monitored.disable_monitor()
            self.socket.close(linger=0)
