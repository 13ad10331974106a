"""The one ZeroMQ context of this process.

inproc endpoints meet only inside one context, and libzmq's I/O threads are best shared.
"""

from __future__ import annotations

import atexit
import os
import threading

import zmq

#: How long the end of the process waits for messages that still lie in a socket's queue.
EXIT_LINGER_MS = 1000

_lock = threading.Lock()
_context: zmq.Context[zmq.Socket[bytes]] | None = None
_pid = 0


def process_context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's context, made on first use; a forked child makes its own.

    Threads: any.
    """
    global _context, _pid
    with _lock:
        if _context is None or _context.closed or _pid != os.getpid():
            # The parent's context stays untouched in a fork: its threads are not here.
            _context = zmq.Context()
            _pid = os.getpid()
        return _context


def _terminate() -> None:
    # Without this the interpreter would end libzmq's threads with messages unsent.
    if _context is not None and _pid == os.getpid() and not _context.closed:
        _context.destroy(linger=EXIT_LINGER_MS)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


atexit.register(_terminate)
os.register_at_fork(after_in_child=_after_fork_in_child)
