"""Room in the kernel for what a Unix socket has under way.

A frame of 1 MiB fills the default buffer five times over, and each time the writer sleeps until
the reader has woken. libzmq sets buffers of tcp only, which grow by themselves anyway.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

#: What to ask for; the system allows as much as ``net.core.wmem_max``.
SEND_BUFFER_NBYTES = 1 << 20


def widen_send_buffer(fd: int) -> None:
    """Give a connection of libzmq's a larger buffer if it is a Unix socket.

    Args:
        fd: Its descriptor. One that is closed by now, or another's, does no harm.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_NBYTES)
