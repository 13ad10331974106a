"""Endpoints: what may be bound or connected to, and what it takes."""

from __future__ import annotations

import ipaddress
import warnings
from dataclasses import dataclass

import zmq

from zfast.errors import ConfigError

#: Longest path of an ipc endpoint, in bytes: the size of ``sockaddr_un.sun_path``, less its NUL.
IPC_PATH_MAX_NBYTES = zmq.IPC_PATH_MAX_LEN


class InsecureEndpointWarning(UserWarning):
    """An endpoint is open to every local user, because ``insecure=True`` was given."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One parsed endpoint, ``scheme://address``.

    Attributes:
        scheme: ``inproc``, ``ipc`` or ``tcp``.
        address: What follows ``://``: a name, a path, or ``host:port``.
    """

    scheme: str
    address: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


def parse_endpoint(url: str, *, insecure: bool = False) -> Endpoint:
    """Check an endpoint before libzmq sees it.

    Args:
        url: ``inproc://name``, ``ipc:///path``, ``ipc://@abstract-name`` or ``tcp://host:port``;
            port ``*`` lets the system choose when binding.
        insecure: Allow unencrypted tcp on the loopback interface, with a warning.

    Raises:
        ConfigError: The endpoint is malformed, or is tcp that nothing protects.
    """
    scheme, separator, address = url.partition("://")
    if not separator or not address or scheme not in ("inproc", "ipc", "tcp"):
        raise ConfigError(
            f"{url!r} is not an endpoint",
            hint="use inproc://name, ipc:///path or tcp://host:port",
        )
    if scheme == "ipc" and len(address.encode()) > IPC_PATH_MAX_NBYTES:
        raise ConfigError(
            f"the path of {url!r} is longer than the {IPC_PATH_MAX_NBYTES} bytes a Unix socket "
            "may have",
            hint="use a shorter folder",
        )
    if scheme == "tcp":
        _check_tcp(url, address, insecure)
    return Endpoint(scheme, address)


def _check_tcp(url: str, address: str, insecure: bool) -> None:
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not (port == "*" or (port.isdigit() and int(port) < 65536)):
        raise ConfigError(f"{url!r} is not tcp://host:port", hint="give both host and port")
    if not insecure:
        raise ConfigError(
            f"{url!r} would be open to anyone who can reach it",
            hint="use ipc://, or insecure=True for a loopback address",
        )
    if not _is_loopback(host):
        raise ConfigError(
            f"{url!r} is not a loopback address, and insecure=True is for loopback only",
            hint="use 127.0.0.1 or ipc://",
        )
    warnings.warn(
        f"{url} is not encrypted and open to every user of this host",
        InsecureEndpointWarning,
        stacklevel=4,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
