"""Endpoints: what may be bound or connected to, and what it takes."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import zmq

from zfast.errors import ConfigError

#: Hosts that stand for every address of a host: to listen at, not to connect to.
EVERY_ADDRESS = ("*", "0.0.0.0", "[::]")
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

    @property
    def path(self) -> str | None:
        """Where the file of an ipc endpoint is; None where there is none, as of abstract names."""
        has_file = self.scheme == "ipc" and not self.address.startswith("@")
        return self.address if has_file else None


def parse_endpoint(
    url: str, *, insecure: bool = False, guarded: bool = False, between_processes: bool = False
) -> Endpoint:
    """Check an endpoint before libzmq sees it.

    Args:
        url: ``inproc://name``, ``ipc:///path``, ``ipc://@abstract-name`` or ``tcp://host:port``;
            port ``*`` lets the system choose when binding.
        insecure: Allow unencrypted tcp on the loopback interface, with a warning.
        guarded: CURVE protects tcp, see ``zfast.security``.
        between_processes: Another process is to be at its other end: not ``inproc``.

    Raises:
        ConfigError: The endpoint is malformed, or reaches nobody, or is tcp that nothing protects.
    """
    if not isinstance(url, str):
        raise ConfigError(f"an endpoint is a string such as ipc:///path, not {url!r}")
    scheme, separator, address = url.partition("://")
    if not separator or not address or scheme not in ("inproc", "ipc", "tcp"):
        raise ConfigError(
            f"{url!r} is not an endpoint",
            hint="use inproc://name, ipc:///path or tcp://host:port",
        )
    if scheme == "inproc" and between_processes:
        raise ConfigError(
            f"{url} reaches no other process", hint="use ipc:///path or tcp://host:port"
        )
    if scheme == "ipc" and address[0] not in "/@":
        raise ConfigError(
            f"{url!r} is not an absolute path, and would be another one in another folder",
            hint=f"use ipc://{os.path.abspath(address)}",
        )
    if scheme == "ipc" and len(address.encode()) > IPC_PATH_MAX_NBYTES:
        raise ConfigError(
            f"the path of {url!r} is longer than the {IPC_PATH_MAX_NBYTES} bytes a Unix socket "
            "may have",
            hint="use a shorter folder",
        )
    if scheme == "tcp":
        _check_tcp(url, address)
        if not guarded:
            _check_unguarded(url, insecure)
    return Endpoint(scheme, address)


class SocketFile:
    """The file that binding an ipc endpoint made; libzmq 4.3.5 leaves it behind.

    Args:
        endpoint: Bound just now; any scheme, the others have no file.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._path = endpoint.path
        self._identity = self._identify()

    def remove(self) -> None:
        """Remove it, unless another process has bound the path since."""
        if self._path and self._identity and self._identify() == self._identity:
            os.unlink(self._path)

    def _identify(self) -> tuple[int, int] | None:
        try:
            info = os.stat(self._path) if self._path else None
        except OSError:
            return None
        return (info.st_dev, info.st_ino) if info else None


def is_served(endpoint: Endpoint) -> bool:
    """Whether a process listens on an ipc endpoint; libzmq would take it away from that one."""
    if endpoint.path is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(endpoint.path) == 0


def host_and_port(url: str) -> tuple[str, str]:
    """The two halves of ``tcp://host:port``; the host of an IPv6 address keeps its brackets."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return host, port


def as_told_to_others(bound: str) -> str:
    """What another host connects to for an endpoint that is bound here."""
    host, port = host_and_port(bound)
    return f"tcp://{socket.gethostname()}:{port}" if host in EVERY_ADDRESS else bound


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in an endpoint, is this one by the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _check_tcp(url: str, address: str) -> None:
    host, separator, port = address.rpartition(":")
    if (
        not separator
        or not host.strip("[]")
        or not (port == "*" or (port.isascii() and port.isdigit() and int(port) < 65536))
    ):
        raise ConfigError(f"{url!r} is not tcp://host:port", hint="give both host and port")


def _check_unguarded(url: str, insecure: bool) -> None:
    if not insecure:
        raise ConfigError(
            f"{url!r} would be open to anyone who can reach it: tcp takes keys",
            hint="make them with 'zfast keys new server' and pass security=ServerSecurity.load(); "
            "or use ipc://, or insecure=True for a loopback address",
        )
    if not is_loopback(host_and_port(url)[0]):
        raise ConfigError(
            f"{url!r} is not a loopback address, and insecure=True is for loopback only",
            hint="make keys with 'zfast keys new server', or use 127.0.0.1 or ipc://",
        )
    warnings.warn(
        f"{url} is not encrypted and open to every user of this host",
        InsecureEndpointWarning,
        stacklevel=4,
    )


def runtime_root() -> Path:
    """Where this user's sockets are put: ``$XDG_RUNTIME_DIR``, else the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())
