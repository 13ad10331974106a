"""Ways for a DataFrame from one process to another, all with the same four calls.

A link is opened by the receiver first; what it says in `endpoints` opens the sender's end. The
sender calls `send` and `wait`, the receiver `receive` and, when it has let the frame go,
`acknowledge`. Nothing here is shared between threads.
"""

from __future__ import annotations

import multiprocessing.connection
import pickle
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pandas as pd
import zmq

from bench.peers.dataframes import multipart_receive, multipart_send
from bench.peers.small_messages import TIMEOUT_S, open_channel, pyzmq_sockets

ALIGNMENT = 64


class Link(ABC):
    """One end of a way between two processes."""

    def __init__(self) -> None:
        #: What the other end needs to connect.
        self.endpoints: list[str] = []
        self._resources = ExitStack()

    @abstractmethod
    def send(self, frame: pd.DataFrame) -> None: ...

    @abstractmethod
    def wait(self) -> None:
        """Wait until the receiver has acknowledged."""

    @abstractmethod
    def receive(self) -> pd.DataFrame: ...

    @abstractmethod
    def acknowledge(self) -> None: ...

    def close(self) -> None:
        self._resources.close()


class MultipartLink(Link):
    """pyzmq, pickle 5 out of band, ``copy=False``."""

    def __init__(self, receiver: bool, endpoints: list[str]) -> None:
        super().__init__()
        endpoints = [endpoints[0], f"{endpoints[0]}-ack"]
        sockets = self._resources.enter_context(pyzmq_sockets(receiver, endpoints))
        self._data: zmq.Socket[bytes] = sockets[0]
        self._ack: zmq.Socket[bytes] = sockets[1]
        self.endpoints = endpoints[:1]

    def send(self, frame: pd.DataFrame) -> None:
        multipart_send(self._data, frame)

    def wait(self) -> None:
        self._ack.recv()

    def receive(self) -> pd.DataFrame:
        return multipart_receive(self._data)

    def acknowledge(self) -> None:
        self._ack.send(b"\1")


class ChannelLink(Link):
    """A zfast channel."""

    def __init__(self, receiver: bool, endpoints: list[str]) -> None:
        super().__init__()
        self._channel = self._resources.enter_context(open_channel(receiver, endpoints[0]))
        self.endpoints = [self._channel.endpoint]

    def send(self, frame: pd.DataFrame) -> None:
        self._channel.send(frame, timeout=TIMEOUT_S)

    def wait(self) -> None:
        self._channel.recv(timeout=TIMEOUT_S)

    def receive(self) -> pd.DataFrame:
        frame: pd.DataFrame = self._channel.recv(timeout=TIMEOUT_S)
        return frame

    def acknowledge(self) -> None:
        self._channel.send(True, timeout=TIMEOUT_S)


class PipeLink(Link):
    """multiprocessing's duplex pipe, pickled in band; also what carries words for the others."""

    def __init__(self, receiver: bool, endpoints: list[str]) -> None:
        super().__init__()
        self._path = endpoints[0].removeprefix("ipc://")
        self.endpoints = endpoints[:1]
        self._listener = (
            multiprocessing.connection.Listener(self._path, "AF_UNIX") if receiver else None
        )
        self._connection: multiprocessing.connection.Connection | None = None

    @property
    def connection(self) -> multiprocessing.connection.Connection:
        if self._connection is None:
            self._connection = self._resources.enter_context(
                self._listener.accept()
                if self._listener
                else multiprocessing.connection.Client(self._path, "AF_UNIX")
            )
        return self._connection

    def send(self, frame: pd.DataFrame) -> None:
        self.connection.send(frame)

    def wait(self) -> None:
        self.connection.recv()

    def receive(self) -> pd.DataFrame:
        frame: pd.DataFrame = self.connection.recv()
        return frame

    def acknowledge(self) -> None:
        self.connection.send(True)

    def close(self) -> None:
        super().close()
        if self._listener:
            self._listener.close()


class SharedMemoryLink(PipeLink):
    """One copy into a ``SharedMemory`` block that the receiver reads in place.

    The block is new for each frame, or one block and both its mappings are kept: then a frame lies
    where the last one was, which no program that keeps frames could bear. It is the limit.
    """

    def __init__(self, receiver: bool, endpoints: list[str], reuse: bool = False) -> None:
        super().__init__(receiver, endpoints)
        self._reuse = reuse
        self._block: SharedMemory | None = None

    def send(self, frame: pd.DataFrame) -> None:
        buffers: list[pickle.PickleBuffer] = []
        header = pickle.dumps(frame, protocol=5, buffer_callback=buffers.append)
        places, end = [], 0
        for buffer in buffers:
            places.append((end, buffer.raw().nbytes))
            end += -(-buffer.raw().nbytes // ALIGNMENT) * ALIGNMENT
        if self._block is None or self._block.size < end:
            self._release()
            self._block = SharedMemory(create=True, size=end)
        memory = self._block.buf
        assert memory is not None
        for (start, nbytes), buffer in zip(places, buffers, strict=True):
            target = np.frombuffer(memory, np.uint8, nbytes, start)
            np.copyto(target, np.frombuffer(buffer.raw(), np.uint8))
        del memory, target
        self.connection.send((self._block.name, header, places))

    def wait(self) -> None:
        super().wait()
        if not self._reuse:
            self._release()

    def receive(self) -> pd.DataFrame:
        name, header, places = self.connection.recv()
        if self._block is None or self._block.name != name:
            self._detach()
            self._block = attach(name)
        memory = self._block.buf
        assert memory is not None
        views = [memory[start : start + nbytes] for start, nbytes in places]
        frame: pd.DataFrame = pickle.loads(header, buffers=views)
        return frame

    def acknowledge(self) -> None:
        if not self._reuse:
            self._detach()
        super().acknowledge()

    def close(self) -> None:
        if self._listener:
            self._detach()
        else:
            self._release()
        super().close()

    def _detach(self) -> None:
        if self._block:
            self._block.close()
            self._block = None

    def _release(self) -> None:
        if self._block:
            self._block.unlink()
        self._detach()


def attach(name: str) -> SharedMemory:
    """Attach to a block that another process owns and will remove."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    block = SharedMemory(name)
    resource_tracker.unregister(f"/{block.name}", "shared_memory")
    return block


class ProxyStoreLink(PipeLink):
    """ProxyStore's file connector, on shared memory's file system where there is one."""

    def __init__(self, receiver: bool, endpoints: list[str]) -> None:
        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store

        super().__init__(receiver, endpoints)
        if receiver:
            memory = Path("/dev/shm")
            folder = tempfile.mkdtemp(
                prefix="zfast-bench-", dir=memory if memory.is_dir() else None
            )
            self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
            self.endpoints = [endpoints[0], folder]
            return
        connector = FileConnector(endpoints[1])
        self._store = self._resources.enter_context(Store("bench", connector, cache_size=0))

    def send(self, frame: pd.DataFrame) -> None:
        self.connection.send(self._store.proxy(frame, evict=True))

    def receive(self) -> pd.DataFrame:
        from proxystore.proxy import extract

        frame: pd.DataFrame = extract(self.connection.recv())
        return frame
