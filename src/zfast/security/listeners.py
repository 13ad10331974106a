"""The tcp endpoint of a guarded socket: one port, served with one key or, in a rotation, with more.

A CURVE handshake names no server key, so a listener has one. While two keys are valid, two
listeners share the port and the kernel deals connections out between them; a client that meets the
other key's listener fails in its first message and tries again a tenth of a second later, as
libzmq does by itself. Nothing that is connected notices.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from errno import EADDRINUSE

import zmq

from zfast.addresses import Endpoint, host_and_port
from zfast.errors import ConfigError, TransportError
from zfast.ip_family import resolve
from zfast.security.connections import is_open
from zfast.security.curve_keys import KeyPair
from zfast.security.limits import Limits

#: A port that this process has just let go of is free when libzmq's thread gets to it, in so long.
LET_GO_S = 2.0
LOOK_EVERY_S = 0.002
#: Listening descriptors of this process that libzmq is to close, with their inodes.
_closing: set[tuple[int, int]] = set()

#: Where the kernel balances connections between listeners of one port.
CAN_SHARE_PORT = sys.platform == "linux"


class Listeners:
    """What a socket listens with. Threads: the socket's.

    Args:
        guarded: Its ZAP domain is set already.
    """

    def __init__(self, guarded: zmq.Socket[bytes], limits: Limits) -> None:
        self._socket = guarded
        self._limits = limits
        self._endpoint = ""
        self._address: tuple[str, int] = ("", 0)
        self._family = socket.AF_INET
        #: Public keys served, with the listening descriptor of each and its inode.
        self._served: dict[str, tuple[int, int]] = {}

    @property
    def keys(self) -> frozenset[str]:
        """The public keys that are served."""
        return frozenset(self._served)

    @property
    def ports(self) -> tuple[int, ...]:
        """The port, once bound."""
        return (self._address[1],) if self._served else ()

    def bind(self, endpoint: Endpoint, keys: Sequence[KeyPair]) -> str:
        """Listen with the first key, then with the others; the endpoint with its port.

        Raises:
            ConfigError: The host is unknown here.
            TransportError: It cannot be bound; ``errno`` says why.
        """
        host, port = host_and_port(str(endpoint))
        host = "0.0.0.0" if host == "*" else host
        try:
            self._family, address = resolve(host, 0 if port == "*" else int(port))
        except OSError as error:
            raise ConfigError(f"{endpoint}: {host!r} is no address of this host") from error
        self._address = (str(address[0]), int(address[1]))
        self._listen(keys[0], shared=False)
        self.serve(keys)
        return self._endpoint

    def serve(self, keys: Sequence[KeyPair]) -> bool:
        """Serve exactly these keys from now on; whether that ends every connection.

        A new key costs nobody anything. When one is given up, libzmq ends every connection of the
        endpoint, whichever key it came by, and tells its monitor of none; peers connect again by
        themselves.
        """
        wanted = _servable(keys)
        gives_up = bool(self.keys - {pair.public.z85 for pair in wanted})
        if gives_up:
            self._share_port()
            self._socket.unbind(self._endpoint)
            self._served.clear()
        for pair in wanted:
            if pair.public.z85 not in self._served:
                self._share_port()
                self._listen(pair, shared=True)
        return gives_up

    def serves(self, keys: Sequence[KeyPair]) -> bool:
        """Whether ``serve`` would change nothing."""
        return self.keys == {pair.public.z85 for pair in _servable(keys)}

    def close(self) -> None:
        """The socket is to be closed: who binds its port next in this process may wait for that."""
        _forget_closed()
        _closing.update(self._served.values())

    def _listen(self, pair: KeyPair, *, shared: bool) -> None:
        try:
            with socket.socket(self._family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shared and hasattr(socket, "SO_REUSEPORT"):
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if self._family == socket.AF_INET6:  # [::] takes IPv4 too, as with libzmq
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                _bind(listener, self._address)
                listener.listen(self._limits.backlog)
                listener.setblocking(False)
                host, port = listener.getsockname()[:2]
                self._address = (host, port)
                inode = os.fstat(listener.fileno()).st_ino
                fd = listener.detach()
        except OSError as error:
            raise TransportError(
                f"cannot bind tcp://{self._address[0]}:{self._address[1]}: {error.strerror}",
                errno=error.errno,
            ) from error
        try:
            self._socket.curve_server = True
            self._socket.curve_secretkey = pair.secret.reveal()
            self._socket.setsockopt(zmq.USE_FD, fd)
            self._check()
            # libzmq owns the descriptor from here on, and looks at no address.
            self._socket.bind(f"tcp://{self._shown_host}:{port}")
        except zmq.ZMQError as error:
            os.close(fd)
            raise TransportError(
                f"cannot bind tcp://{self._shown_host}:{port}: {error.strerror}", errno=error.errno
            ) from error
        finally:
            self._socket.setsockopt(zmq.USE_FD, -1)
        self._endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._served[pair.public.z85] = (fd, inode)

    @property
    def _shown_host(self) -> str:
        host = self._address[0]
        return f"[{host}]" if ":" in host else host

    def _check(self) -> None:
        """Refuse to bind what is not guarded in every respect."""
        get = self._socket.getsockopt
        if (
            get(zmq.MECHANISM) != zmq.CURVE
            or not get(zmq.CURVE_SERVER)
            or not self._socket.get_string(zmq.ZAP_DOMAIN).rstrip("\0")
            or not get(zmq.ZAP_ENFORCE_DOMAIN)
            or get(zmq.MAXMSGSIZE) != self._limits.frame_nbytes
        ):
            raise TransportError(
                "the socket is not guarded: its security options were changed",
                hint="set no security options on a socket that a door guards",
            )

    def _share_port(self) -> None:
        """Let another listener of this user have the same port."""
        if not hasattr(socket, "SO_REUSEPORT"):
            return
        for fd, inode in self._served.values():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as twin:
                if os.fstat(twin.fileno()).st_ino == inode:
                    twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _bind(listener: socket.socket, address: tuple[str, int]) -> None:
    until = time.monotonic() + LET_GO_S
    while True:
        try:
            listener.bind(address)
        except OSError as error:
            _forget_closed()
            if error.errno != EADDRINUSE or not _closing or time.monotonic() > until:
                raise
            time.sleep(LOOK_EVERY_S)
        else:
            return


def _forget_closed() -> None:
    _closing.difference_update([each for each in list(_closing) if not is_open(*each)])


def _servable(keys: Sequence[KeyPair]) -> Sequence[KeyPair]:
    return keys if CAN_SHARE_PORT else keys[:1]
