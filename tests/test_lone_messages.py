"""Lone messages: the quick way through a link, and whose turn a link's socket is."""

from __future__ import annotations

import threading
import time

import pytest

from zfast import Channel, _core
from zfast.errors import ChannelClosedError

PLAIN_VALUES = [
    b"",
    b"x",
    b"x" * 4095,
    b"x" * 4096,
    b"x" * 70_000,
    bytearray(b"mutable"),
    "text, größer",
    "x" * 5000,
    0,
    -(2**70),
    1.5,
    True,
    None,
    {"id": 7, "name": "run", "nested": None, "raw": b"\0"},
    {1: "keys of other types"},
    {f"key {i}": i for i in range(65)},
    (1, [2, {"three": 4}]),
]


@pytest.fixture(params=["inproc", "ipc"])
def channels(request, short_folder):
    ipc, inproc = f"ipc://{short_folder}/s", f"inproc://{short_folder.name}"
    endpoint = ipc if request.param == "ipc" else inproc
    rx = Channel.bind(endpoint)
    tx = Channel.connect(endpoint)
    yield rx, tx
    tx.abort()
    rx.abort()


def test_plain_values_come_back_as_they_were(channels):
    rx, tx = channels
    for value in PLAIN_VALUES:
        tx.send(value, timeout=10)
        received = rx.recv(timeout=10)
        rx.send(received, timeout=10)
        back = tx.recv(timeout=10)
        assert type(received) is type(back) is type(value)
        assert received == back == value


def test_lone_messages_mix_with_everything_else(channels):
    rx, tx = channels
    tx.send(b"lone")
    tx.send_many([b"of", b"a batch"])
    tx.send({"lone": 1})
    tx.send([b"not", "plain"])
    assert rx.recv(timeout=10) == b"lone"
    assert rx.recv_many(timeout=10).to_bytes_list() == [b"of", b"a batch"]
    assert rx.recv(timeout=10) == {"lone": 1}
    assert rx.recv(timeout=10) == [b"not", "plain"]


def test_what_was_read_is_acknowledged_though_nobody_speaks_again(channels):
    rx, tx = channels
    rx_received = threading.Event()

    def receive():
        assert rx.recv(timeout=10) == b"lone"
        rx_received.set()

    reader = threading.Thread(target=receive)
    reader.start()
    tx.send(b"lone", timeout=10)
    assert rx_received.wait(10)
    reader.join()
    # The receiver makes no further call: a thread of the process tells for it.
    tx.close(timeout=10)


def test_a_sender_notices_soon_that_its_peer_closed(channels):
    rx, tx = channels
    tx.send(b"hello", timeout=10)
    assert rx.recv(timeout=10) == b"hello"
    rx.close()
    deadline = time.monotonic() + 10

    def go_on_sending():
        while time.monotonic() < deadline:
            tx.send(b"into the void", timeout=10)

    with pytest.raises(ChannelClosedError):
        go_on_sending()


def test_a_turn_belongs_to_one_thread_of_the_user():
    turn = _core.Turn()
    assert turn.enter()
    assert not turn.enter()
    assert not turn.try_between()
    turn.leave()
    assert turn.enter()
    turn.leave()


def test_a_turn_waits_for_a_background_thread():
    turn = _core.Turn()
    entered = threading.Event()
    assert turn.try_between()

    def enter():
        assert turn.enter()
        entered.set()

    user = threading.Thread(target=enter)
    user.start()
    assert not entered.wait(0.05)
    turn.end_between()
    assert entered.wait(10)
    user.join()
    turn.leave()


def test_what_was_seen_grows_stale():
    turn = _core.Turn()
    assert not turn.fresh
    turn.stay_fresh(60)
    assert turn.fresh
    turn.stay_fresh(0)
    assert not turn.fresh
