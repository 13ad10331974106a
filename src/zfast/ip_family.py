"""IPv4 or IPv6: what a host's name stands for, and how a socket reaches it.

A name stands for its IPv4 address where it has one: what listens at it and what connects to it so
mean the same one, on every host. libzmq by itself knows one family a socket, IPv4 unless it is
told, and with the other one it would take a name for its IPv6 address alone.
"""

from __future__ import annotations

import socket
from typing import Any

import zmq

from zfast.addresses import host_and_port
from zfast.errors import TransportError


def resolve(host: str, port: int = 0) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The family of a host's address, and the address with the port as ``socket`` takes it.

    Raises:
        OSError: It has none that is known here.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from error
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def choose_family(opened: zmq.Socket[bytes], url: str) -> None:
    """Let a socket that is to bind or connect take IPv6 if the url's host has nothing else.

    A name that is not known yet counts as one of an IPv4 address.
    """
    host, _ = host_and_port(url)
    if not url.startswith("tcp://") or host == "*":
        return
    try:
        family, _ = resolve(host)
    except OSError:
        return
    opened.setsockopt(zmq.IPV6, family == socket.AF_INET6)


def connect(opened: zmq.Socket[bytes], url: str) -> None:
    """Connect to an endpoint; libzmq goes on trying for as long as the socket is open.

    Raises:
        TransportError: No socket can; ``errno`` says why.
    """
    try:
        choose_family(opened, url)
        opened.connect(url)
    except zmq.ZMQError as error:
        raise TransportError(
            f"cannot connect to {url}: {error.strerror}", errno=error.errno
        ) from error
