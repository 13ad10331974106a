"""Sessions: whatever is cut, every message arrives once, whole and in order."""

from __future__ import annotations

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from zfast import _core
from zfast.context import process_context
from zfast.errors import ProtocolError
from zfast.runner.remote_protocol import Relayed
from zfast.runner.session import WINDOW_NBYTES, Session


@pytest.fixture(scope="module")
def wire():
    """Takes a numbered message over a socket, as it goes between hosts."""
    near, far = (process_context().socket(zmq.PAIR) for _ in range(2))
    near.bind("inproc://test-session")
    far.connect("inproc://test-session")

    def carry(message):
        _core.send_message(
            near, message.kind, message.body, message.buffers, request_id=message.number
        )
        return _core.recv(far, wait=True)

    yield carry
    near.close(linger=0)
    far.close(linger=0)


sizes = st.lists(st.sampled_from([0, 1, 100, 70_000, 1 << 20, (5 << 20) + 3]), max_size=3)


@given(
    messages=st.lists(sizes, min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 12), max_size=6),
    silent=st.booleans(),
)
@settings(max_examples=30)
def test_all_arrive_once_and_in_order_however_often_it_is_cut(wire, messages, cuts, silent):
    sender, receiver, arrived = Session(), Session(), []
    for number, nbytes in enumerate(messages):
        buffers = [bytes([65 + number]) * n for n in nbytes]
        sender.post(Relayed(b"w", number, b"body"), buffers)
    for n_before_cut in [*cuts, 10_000]:
        for _ in range(n_before_cut):
            message = sender.next()
            if message is None:
                if not receiver.received or sender.all_arrived:
                    break
                sender.acknowledge(receiver.received)
                message = sender.next()
                if message is None:
                    break
            if (whole := receiver.receive(wire(message))) is not None:
                arrived.append(whole)
        if not silent:
            sender.acknowledge(receiver.received)
        sender.resume(receiver.received)
        while (again := sender.next()) is not None:  # what was lost, and more
            if (whole := receiver.receive(wire(again))) is not None:
                arrived.append(whole)
            sender.acknowledge(receiver.received)
    assert [message.kind for message, _ in arrived] == list(range(len(messages)))
    for (_, buffers), nbytes in zip(arrived, messages, strict=True):
        assert [view.nbytes for view in buffers] == nbytes
    for number, (_, buffers) in enumerate(arrived):
        assert all(bytes(view) == bytes([65 + number]) * view.nbytes for view in buffers)
    assert sender.all_arrived


def test_what_came_before_is_passed_over_and_a_gap_is_an_error(wire):
    sender, receiver = Session(), Session()
    for number in range(3):
        sender.post(Relayed(b"w", number, b""))
    first, _, third = sender.next(), sender.next(), sender.next()
    assert receiver.receive(wire(first)) is not None
    assert receiver.receive(wire(first)) is None
    with pytest.raises(ProtocolError, match="message 3 came after message 1"):
        receiver.receive(wire(third))


def test_no_more_than_the_window_is_under_way(wire):
    sender = Session()
    sender.post(Relayed(b"w", 1, b""), [bytes(4 * WINDOW_NBYTES)])
    under_way = 0
    while (message := sender.next()) is not None:
        under_way += sum(view.nbytes for view in message.buffers)
    assert 0.9 * WINDOW_NBYTES < under_way < 1.2 * WINDOW_NBYTES
    with pytest.raises(ProtocolError, match="sent"):
        sender.acknowledge(10_000)
