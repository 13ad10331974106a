"""What a user's code may say, and what the checkers must know of it; never run, only checked."""

from __future__ import annotations

from typing import Any

import zfast
from typing_extensions import assert_type
from zfast import Batch, Channel, SendTracker, ZfastError, share_memory
from zfast.errors import ChannelClosedError, SendTimeoutError
from zfast.transport.batch_writer import BatchWriter
from zfast.transport.delivery import Delivery


def channels(value: object) -> None:
    with Channel.bind("ipc:///tmp/s") as rx, Channel.connect("ipc:///tmp/s", hwm=10) as tx:
        assert_type(rx, Channel)
        assert_type(rx.endpoint, str)
        assert_type(rx.peers, list[bytes])
        tx.send(value, timeout=1.0)
        delivery = tx.send_view(value)
        assert_type(delivery, Delivery)
        assert_type(delivery.wait(1.0), bool)
        tx.send_many([b"a", bytearray(b"b"), memoryview(b"c")])
        assert_type(rx.recv(), Any)
        batch = rx.recv_many(timeout=None)
        assert_type(batch, Batch)
        assert_type(batch[0], memoryview)
        assert_type(batch[1:], list[memoryview])
        assert_type(batch.to_bytes_list(), list[bytes])
        for payload in batch:
            assert_type(payload.nbytes, int)
        with tx.batching(max_delay_us=100) as writer:
            assert_type(writer, BatchWriter)
            writer.send(b"payload")
        tx.send(1, timout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def errors(error: ZfastError) -> None:
    assert_type(error.hint, str | None)
    assert issubclass(SendTimeoutError, TimeoutError)
    assert issubclass(ChannelClosedError, OSError)


def memory(tracker: SendTracker) -> None:
    with share_memory():
        assert_type(tracker.done, bool)
    assert_type(zfast.__version__, str)
