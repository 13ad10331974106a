"""The boundary of ipc endpoints: the operating system's, between users of one host."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

import zmq

from zfast.addresses import Endpoint, SocketFile, is_served
from zfast.errors import ConfigError, TransportError
from zfast.ip_family import choose_family
from zfast.security.private_files import is_closed

#: Linux's struct ucred: process, user, group.
_UCRED = struct.Struct("3i")
_ASK_S = 2.0


def bind_to_this_user(opened: zmq.Socket[bytes], endpoint: Endpoint) -> tuple[str, SocketFile]:
    """Bind what no door guards; over ipc, nobody but this user's processes comes in.

    Returns:
        The endpoint, with the port that the system chose, and the file to remove at the end.

    Raises:
        ConfigError: Something else is at its path; or this system tells no peer's user, and the
            folder is open to others.
        zmq.ZMQError: It cannot be bound.
    """
    _check_path(endpoint)
    _admit_only_this_user(opened, endpoint)
    choose_family(opened, str(endpoint))
    opened.bind(str(endpoint))
    return opened.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), SocketFile(endpoint)


def _check_path(endpoint: Endpoint) -> None:
    """See that libzmq, which removes what is at the path, removes a socket that nobody serves."""
    if endpoint.path is None:
        return
    try:
        mode = os.lstat(endpoint.path).st_mode
    except OSError:
        return  # nothing is there; or libzmq says what is wrong with it
    if not stat.S_ISSOCK(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a file that is no socket"
        raise ConfigError(
            f"cannot bind {endpoint}: there is {what}", hint="choose another path, or remove it"
        )
    if is_served(endpoint):
        raise zmq.ZMQError(errno.EADDRINUSE)


def _admit_only_this_user(bound: zmq.Socket[bytes], endpoint: Endpoint) -> None:
    """Let the kernel's word on a peer's user decide."""
    if endpoint.scheme != "ipc":
        return
    try:
        bound.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
    except (zmq.ZMQError, AttributeError) as error:
        folder = Path(endpoint.address).parent
        if endpoint.address.startswith("@") or not is_closed(folder.stat(), readable=False):
            raise ConfigError(
                f"{endpoint} would be open to other users of this host",
                hint="put it in a folder of mode 0700",
            ) from error


def connect_only_to_this_user(connecting: zmq.Socket[bytes], endpoint: Endpoint) -> None:
    """Before an ipc endpoint is connected: see that nobody else can put a socket in its place.

    In a folder that is this user's alone nobody can. In another, such as ``/tmp``, and under an
    abstract name, whoever comes first can: there the socket must be there already, and this
    user's, and a connection that ends is not made again.

    Raises:
        TransportError: It is somebody else's, or could be by the time it is there.
    """
    if endpoint.scheme != "ipc":
        return
    _check_file(endpoint)
    if _is_private(endpoint):
        return
    owner = _owner(endpoint)
    if owner is None:
        raise TransportError(
            f"nobody listens at {endpoint} yet, and another user could",
            hint="put it in a folder of mode 0700, or open the bound side first",
        )
    if owner not in (os.geteuid(), 0):
        raise _somebody_elses(endpoint, owner)
    connecting.reconnect_ivl = -1


def _check_file(endpoint: Endpoint) -> None:
    """Refuse a socket's file that another user has put there."""
    if endpoint.address.startswith("@"):
        return
    try:
        info = os.stat(endpoint.address)
    except OSError:
        return  # not bound yet
    if stat.S_ISSOCK(info.st_mode) and info.st_uid not in (os.geteuid(), 0):
        raise _somebody_elses(endpoint, info.st_uid)


def _is_private(endpoint: Endpoint) -> bool:
    """Whether nobody but this user, or root, can make or replace files in its folder."""
    if endpoint.address.startswith("@"):
        return False
    try:
        info = Path(endpoint.address).parent.stat()
    except OSError:
        return True  # libzmq says what is wrong with it
    return is_closed(info, readable=True)


def _owner(endpoint: Endpoint) -> int | None:
    """The user of whoever listens there, by the kernel's word; None if nobody does."""
    address = endpoint.address
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(_ASK_S)
        try:
            asker.connect("\0" + address[1:] if address.startswith("@") else address)
            if not hasattr(socket, "SO_PEERCRED"):
                return os.stat(address).st_uid
            credentials = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return None
    owner: int = _UCRED.unpack(credentials)[1]
    return owner


def _somebody_elses(endpoint: Endpoint, owner: int) -> TransportError:
    return TransportError(
        f"{endpoint} belongs to user {owner}, not to this one",
        hint="connect to other users over tcp, with keys",
    )
