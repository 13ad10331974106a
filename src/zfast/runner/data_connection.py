"""One connection to another host's data endpoint."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import zmq

from zfast import _core
from zfast.addresses import parse_endpoint
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import HandshakeError, ProtocolError, TransportError
from zfast.ip_family import connect
from zfast.runner.control import ControlMessage
from zfast.runner.data_protocol import DATA_MESSAGES, WINDOW, Ask
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair, PublicKey
from zfast.security.same_user import connect_only_to_this_user

#: libzmq tries to connect so often, at first and at most.
RECONNECT_MS, RECONNECT_MAX_MS = 100, 1000


@dataclass(frozen=True, slots=True)
class DataPeer:
    """Another host's data endpoint.

    Attributes:
        public_key: In Z85; empty where ipc needs none.
    """

    endpoint: str
    public_key: str = ""


class DataConnection:
    """Connects, and goes on trying; once it stood and has ended it is over. Threads: the poller's.

    Args:
        pair: This process's keys, which tcp needs.
        poller: Woken when there is news, or something to receive.

    Raises:
        ConfigError: The endpoint or a key is malformed or missing.
        TransportError: It is another user's, or could be; or this process has no more sockets.
    """

    def __init__(self, peer: DataPeer, pair: KeyPair | None, poller: zmq.Poller) -> None:
        endpoint = parse_endpoint(peer.endpoint, guarded=pair is not None)
        self._poller = poller
        try:
            with contextlib.ExitStack() as undo:
                self._socket = undo.enter_context(process_context().socket(zmq.DEALER))
                self._socket.linger = 0
                self._socket.rcvhwm = 2 * WINDOW  # more than that nobody asked for
                self.news = ConnectionMonitor(self._socket, only_first=True)
                undo.callback(self.news.close)
                if endpoint.scheme == "tcp" and pair is not None:
                    security = ClientSecurity(pair, [PublicKey(peer.public_key)])
                    security.guard(self._socket, peer.endpoint, brings_token=False)
                self._socket.reconnect_ivl = RECONNECT_MS
                self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
                connect_only_to_this_user(self._socket, endpoint)
                connect(self._socket, peer.endpoint)
                undo.pop_all()
        except zmq.ZMQError as error:  # such as too many open files
            raise TransportError(
                f"cannot connect to {peer.endpoint}: {error.strerror}", errno=error.errno
            ) from error
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self.news.socket, zmq.POLLIN)

    def send(self, number: int, ask: Ask) -> bool:
        """Ask; False if it takes no more questions for now."""
        kind, body = DATA_MESSAGES.encode(ask)
        return _core.send_message(self._socket, kind, body, request_id=number)

    def receive(self) -> tuple[int, ControlMessage, list[memoryview]] | None:
        """The next answer: its question's number, the answer and its buffers.

        Raises:
            ProtocolError: What came is no answer; it was dropped.
        """
        received = _core.recv(self._socket)
        if received is None:
            return None
        if isinstance(received, _core.Batch):
            raise ProtocolError("a batch")
        answer = DATA_MESSAGES.decode(received.kind, received.body)
        return received.request_id, answer, received.buffers

    def close(self) -> None:
        """End it."""
        self._poller.unregister(self._socket)
        self._poller.unregister(self.news.socket)
        self.news.close()
        self._socket.close(linger=0)


def refusal(peer: DataPeer, pair: KeyPair) -> HandshakeError:
    """What it means that a peer does not let our key in."""
    return HandshakeError(
        f"{peer.endpoint} refused our key {pair.public.fingerprint}: no data can be fetched there"
    )


def silence(peer: DataPeer, connection: DataConnection | None, patience_s: float) -> TransportError:
    """What it means that nothing has come from a peer for so long."""
    news = connection.news if connection is not None else None
    if news is not None and news.failures:
        return HandshakeError(
            f"{peer.endpoint} is not who we were told: no handshake succeeded in {patience_s:g} s"
        )
    what = "sent nothing" if news is not None and news.connected else "did not answer"
    return TransportError(f"{peer.endpoint}, which has data for us, {what} for {patience_s:g} s")
