"""A sender or receiver of pandas DataFrames over tcp with CURVE, as ``dataframes`` without.

Run: ``encrypted ROLE PEER NBYTES COUNT ENDPOINT ACK_ENDPOINT``. The keys are derived, so that both
ends know them; pyzmq's end has libzmq's own handshake and no handler that would be asked.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from contextlib import ExitStack

import zmq
from zmq.utils import z85

from bench.peers.control import serve
from bench.peers.dataframes import multipart_receive, multipart_send, receiving, sending
from bench.peers.small_messages import TIMEOUT_S
from zfast import Channel
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity


def key_pair(name: str) -> KeyPair:
    secret = z85.encode(hashlib.sha256(name.encode()).digest()).decode()
    return KeyPair.from_secret(secret, name)


SERVER, CLIENT = key_pair("server"), key_pair("client")


def curve_sockets(
    receiver: bool, endpoints: list[str], stack: ExitStack
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Data and acknowledgements; the receiver binds both."""
    context = stack.enter_context(zmq.Context())
    kinds = (zmq.PULL, zmq.PUSH) if receiver else (zmq.PUSH, zmq.PULL)
    sockets = []
    for kind, endpoint in zip(kinds, endpoints, strict=True):
        socket = stack.enter_context(context.socket(kind))
        socket.linger = 0
        if receiver:
            socket.curve_server = True
            socket.curve_secretkey = SERVER.secret.reveal()
            socket.bind(endpoint)
        else:
            socket.curve_serverkey = SERVER.public.z85.encode()
            socket.curve_publickey = CLIENT.public.z85.encode()
            socket.curve_secretkey = CLIENT.secret.reveal()
            socket.connect(endpoint)
        sockets.append(socket)
    return sockets[0], sockets[1]


def open_channel(receiver: bool, endpoint: str) -> Channel:
    if receiver:
        server = ServerSecurity.from_keys(SERVER, [(CLIENT.public, Role.DEVELOPER)])
        return Channel.bind(endpoint, security=server)
    return Channel.connect(endpoint, security=ClientSecurity(CLIENT, [SERVER.public]))


def main() -> None:
    role, peer, nbytes, count, *endpoints = sys.argv[1:]
    receiver = role == "receiver"
    transfers = int(count)
    with ExitStack() as stack:
        if peer == "pyzmq-multipart":
            data, ack = curve_sockets(receiver, endpoints, stack)
            bound = [s.last_endpoint.rstrip(b"\0").decode() for s in (data, ack)]
            send: Callable[..., None] = lambda frame: multipart_send(data, frame)  # noqa: E731
            receive = lambda: multipart_receive(data)  # noqa: E731
            acknowledge: Callable[[], object] = lambda: ack.send(b"\1")  # noqa: E731
            wait: Callable[[], object] = ack.recv
        else:
            channel = stack.enter_context(open_channel(receiver, endpoints[0]))
            bound = [channel.endpoint, channel.endpoint]
            send = lambda frame: channel.send(frame, timeout=TIMEOUT_S)  # noqa: E731
            receive = lambda: channel.recv(timeout=TIMEOUT_S)  # noqa: E731
            acknowledge = lambda: channel.send(True, timeout=TIMEOUT_S)  # noqa: E731
            wait = receive
        if receiver:
            serve(receiving(receive, acknowledge, transfers, 0), endpoints=bound)
        else:
            serve(sending(send, wait, int(nbytes), transfers))


if __name__ == "__main__":
    main()
