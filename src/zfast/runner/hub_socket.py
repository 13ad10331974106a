"""The hub's endpoint: control messages to and from workers."""

from __future__ import annotations

import logging

import zmq

from zfast import _core
from zfast.addresses import parse_endpoint
from zfast.context import process_context
from zfast.errors import ProtocolError, TransportError
from zfast.runner.control import Buffers, ControlMessage
from zfast.runner.protocol import HUB_MESSAGES
from zfast.security.same_user import bind_to_this_user

logger = logging.getLogger("zfast.runner")


class HubSocket:
    """A ROUTER that speaks the control protocol. Threads: the hub's only.

    Args:
        poller: Woken when there is something to receive.
    """

    def __init__(self, poller: zmq.Poller) -> None:
        self._socket = process_context().socket(zmq.ROUTER)
        self._socket.router_mandatory = True
        self._socket.set_hwm(0)  # bounded by one job a worker
        # From the start: else a worker that goes as the socket is closed leaves what it was sent,
        # and the memory that was lent for it, in libzmq for ever.
        self._socket.linger = 0
        self.is_bound = False
        poller.register(self._socket, zmq.POLLIN)

    def bind(self, endpoint: str) -> None:
        """Let workers connect."""
        bind_to_this_user(self._socket, parse_endpoint(endpoint))
        self.is_bound = True

    def send(self, routing_id: bytes, message: ControlMessage, buffers: Buffers = ()) -> None:
        """Send a message. To a worker that is gone it goes nowhere: its death is noticed."""
        self.send_raw(routing_id, *HUB_MESSAGES.encode(message), buffers)

    def send_raw(self, routing_id: bytes, kind: int, body: bytes, buffers: Buffers) -> None:
        """``send``, of a message that is encoded."""
        try:
            _core.send_message(self._socket, kind, body, buffers, routing_id=routing_id)
        except TransportError:
            logger.debug("worker %r cannot be reached", routing_id, exc_info=True)

    def receive_raw(self) -> _core.Message | None:
        """The next message, as it was encoded; None when there is none.

        Raises:
            ProtocolError: What came is no message of ours; it was dropped.
        """
        received = _core.recv(self._socket, routed=True)
        if isinstance(received, _core.Batch):
            raise ProtocolError(f"a batch from {received.routing_id!r}, not a worker")
        return received

    def close(self) -> None:
        """Close it; what lies in its queues is dropped."""
        self._socket.close()
