"""Arrow Flight over tcp on one host: a server at the receiver, a put for each frame."""

from __future__ import annotations

import queue
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import flight

from bench.peers.links import Link
from bench.peers.small_messages import TIMEOUT_S


class _Server(flight.FlightServerBase):  # type: ignore[misc]
    """Hands each table that is put to the receiver, and answers when the receiver has done."""

    def __init__(self) -> None:
        super().__init__("grpc+tcp://127.0.0.1:0")
        self.tables: queue.SimpleQueue[pa.Table] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        self.tables.put(reader.read_all())
        self.done.get(timeout=TIMEOUT_S)
        writer.write(b"\1")


class FlightLink(Link):
    """Frames as Arrow tables, converted on both sides."""

    def __init__(self, receiver: bool, endpoints: list[str]) -> None:
        super().__init__()
        self._acknowledged: Any = None
        if receiver:
            self._server = _Server()
            self._resources.callback(self._server.shutdown)
            self.endpoints = [f"grpc+tcp://127.0.0.1:{self._server.port}"]
            return
        self._client = flight.connect(endpoints[0])
        self._resources.callback(self._client.close)

    def send(self, frame: pd.DataFrame) -> None:
        table = pa.Table.from_pandas(frame)
        descriptor = flight.FlightDescriptor.for_command(b"frame")
        writer, self._acknowledged = self._client.do_put(descriptor, table.schema)
        writer.write_table(table)
        writer.done_writing()
        self._writer = writer

    def wait(self) -> None:
        if self._acknowledged.read() is None:
            raise ConnectionError("the Flight server has ended the put without an acknowledgement")
        self._writer.close()

    def receive(self) -> pd.DataFrame:
        table = self._server.tables.get(timeout=TIMEOUT_S)
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def acknowledge(self) -> None:
        self._server.done.put(True)
