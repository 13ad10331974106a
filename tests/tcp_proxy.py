"""A network between two tcp peers that a test can cut, or swallow bytes with."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time


class Proxy:
    """Passes bytes between whoever connects to ``endpoint`` and a target, from one thread.

    Attributes:
        swallows: As in a partition, nothing passes, and nobody is told.
        is_one_way: Nothing passes from the target to whoever connected; the other way all does.
        pause_s: So long each piece of at most 64 KiB takes: a slow line, and a long one.
        n_connections: How many there were.
        passed_nbytes: What has passed, both ways together.
    """

    def __init__(self, target):
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.swallows = False
        self.is_one_way = False
        self.pause_s = 0.0
        self.n_connections = 0
        self.passed_nbytes = 0
        self._peers = {}
        self._far = set()
        self._left = -1  # bytes that pass before the cut; -1 for all
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self):
        """End every connection at once; new ones may come."""
        with self._lock:
            self._cut()

    def cut_after(self, nbytes):
        """End every connection when so many bytes more have passed: in the middle of a message."""
        with self._lock:
            self._left = nbytes

    def close(self):
        self._stopped = True
        self._thread.join()
        self.cut()
        self._listener.close()

    def _cut(self):
        for peer in list(self._peers):
            # An RST, as from a router that forgot the connection.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
        self._peers.clear()
        self._far.clear()

    def _run(self):
        while not self._stopped:
            with self._lock:
                heard = set() if self.swallows else set(self._peers)
                watched = [self._listener, *(heard - self._far if self.is_one_way else heard)]
            with contextlib.suppress(OSError, ValueError):
                readable, _, _ = select.select(watched, [], [], 0.02)
                with self._lock:
                    for ready in readable:
                        self._serve(ready)

    def _serve(self, ready):
        if ready is self._listener:
            near, _ = ready.accept()
            if self.swallows:
                near.close()
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                return
            self._peers[near], self._peers[far] = far, near
            self._far.add(far)
            self.n_connections += 1
        elif ready in self._peers:
            other = self._peers[ready]
            try:
                data = ready.recv(1 << 16)
                time.sleep(self.pause_s)
                if self._left >= 0:
                    data = data[: self._left]
                    self._left -= len(data)
                if data:
                    other.sendall(data)
                    self.passed_nbytes += len(data)
            except OSError:
                data = b""
            if not data:
                if self._left == 0:
                    self._left = -1
                    self._cut()
                    return
                for peer in (ready, other):
                    self._peers.pop(peer, None)
                    self._far.discard(peer)
                    peer.close()
