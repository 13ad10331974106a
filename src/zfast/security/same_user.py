"""The boundary of ipc endpoints: the operating system's, between users of one host."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import zmq

from zfast.addresses import Endpoint
from zfast.errors import ConfigError, TransportError


def admit_only_this_user(bound: zmq.Socket[bytes], endpoint: Endpoint) -> None:
    """Before an ipc endpoint is bound: let the kernel's word on a peer's user decide.

    Raises:
        ConfigError: This system tells no peer's user, and the folder is open to others.
    """
    if endpoint.scheme != "ipc":
        return
    try:
        bound.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
    except (zmq.ZMQError, AttributeError) as error:
        folder = Path(endpoint.address).parent
        if endpoint.address.startswith("@") or folder.stat().st_mode & 0o077:
            raise ConfigError(
                f"{endpoint} would be open to other users of this host",
                hint="put it in a folder of mode 0700",
            ) from error


def check_same_user(endpoint: Endpoint) -> None:
    """Before connecting to an ipc endpoint: refuse a socket that another user has put there.

    Raises:
        TransportError: It is somebody else's.
    """
    if endpoint.scheme != "ipc" or endpoint.address.startswith("@"):
        return
    try:
        info = os.stat(endpoint.address)
    except OSError:
        return  # not bound yet
    if stat.S_ISSOCK(info.st_mode) and info.st_uid not in (os.geteuid(), 0):
        raise TransportError(
            f"{endpoint} belongs to user {info.st_uid}, not to this one",
            hint="connect to other users over tcp, with keys",
        )
