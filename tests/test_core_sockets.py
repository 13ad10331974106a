"""The compiled core on real sockets: what is copied, what is lent, and when it is let go."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import struct
import threading
import time
import weakref

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from zfast import _core
from zfast.errors import ProtocolError, TransportError


@pytest.fixture
def open_socket():
    """Opens sockets of one context, and closes them."""
    sockets = []
    with zmq.Context() as context:

        def open_socket(socket_type):
            sockets.append(context.socket(socket_type))
            return sockets[-1]

        yield open_socket
        for socket in sockets:
            socket.close(linger=0)


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def pair(request, open_socket, short_folder):
    """A PUSH and a PULL, connected over each transport."""
    push, pull = open_socket(zmq.PUSH), open_socket(zmq.PULL)
    ipc = f"ipc://{short_folder}/s"
    address = {"inproc": "inproc://pair", "ipc": ipc, "tcp": "tcp://127.0.0.1:*"}
    pull.bind(address[request.param])
    push.connect(pull.last_endpoint.rstrip(b"\0").decode())
    return push, pull


def receive(socket):
    assert _core.poll(socket, _core.POLLIN, 10)
    return _core.recv(socket)


def until(condition, timeout=10.0):
    """Wait for something that another thread does, and that nothing signals."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_small_and_large_buffers_arrive_whole(pair):
    push, pull = pair
    large = np.arange(100_000, dtype=np.float64)
    assert _core.send_message(push, 9, b"body", [b"small", large, b""], flags=2, request_id=7)
    message = receive(pull)
    assert (message.kind, message.flags, message.request_id) == (9, 2, 7)
    assert bytes(message.body) == b"body"
    assert bytes(message.buffers[0]) == b"small"
    np.testing.assert_array_equal(np.frombuffer(message.buffers[1]), large)
    assert bytes(message.buffers[2]) == b""
    assert all(buffer.readonly for buffer in message.buffers)


def test_a_large_buffer_is_lent_and_given_back(pair):
    push, pull = pair
    large = bytearray(b"x" * 300_000)
    tracker = _core.SendTracker()
    assert _core.send_message(push, 1, b"", [large], tracker=tracker)
    if pull.last_endpoint.startswith(b"inproc:"):  # else libzmq may be through with it already
        with pytest.raises(BufferError):
            large.append(0)  # lent: it cannot move
    message = receive(pull)
    assert bytes(message.buffers[0]) == bytes(large)
    del message
    assert tracker.wait(10)
    assert tracker.done
    until(lambda: _core.lent_buffers() == 0)
    large.append(0)


def test_over_inproc_the_receiver_holds_the_senders_memory(open_socket):
    pull, push = open_socket(zmq.PULL), open_socket(zmq.PUSH)
    pull.bind("inproc://shared")
    push.connect("inproc://shared")
    large = np.zeros(100_000)
    tracker = _core.SendTracker()
    _core.send_message(push, 1, b"", [large], tracker=tracker)
    message = receive(pull)
    assert np.shares_memory(np.frombuffer(message.buffers[0]), large)
    assert not tracker.wait(0.05)
    del message
    assert tracker.wait(10)


def test_copy_leaves_the_buffer_with_the_sender(pair):
    push, pull = pair
    large = bytearray(b"x" * 300_000)
    _core.send_message(push, 1, b"", [large], copy=True)
    large[:] = b"y" * len(large)
    assert bytes(receive(pull).buffers[0]) == b"x" * len(large)


def test_an_idle_sender_pins_nothing(pair):
    push, pull = pair

    class Traced(bytearray):
        pass

    released = threading.Event()
    large = Traced(b"x" * 300_000)
    weakref.finalize(large, released.set)
    _core.send_message(push, 1, b"", [large])
    del large
    receive(pull)
    # Nobody calls into the core again: the reaper must have released it.
    assert released.wait(10)


def test_sending_without_a_peer_says_so_and_lends_nothing(open_socket):
    push = open_socket(zmq.PUSH)
    large = bytearray(300_000)
    assert not _core.send_message(push, 1, b"", [large])
    assert not send_batch(push, [b"a"])
    until(lambda: _core.lent_buffers() == 0)
    large.append(0)


def test_receiving_when_nothing_is_there_says_so(pair):
    _, pull = pair
    assert _core.recv(pull) is None
    assert _core.poll(pull, _core.POLLIN, 0.01) == 0


def test_an_unknown_routing_id_is_a_transport_error(open_socket):
    router = open_socket(zmq.ROUTER)
    router.router_mandatory = True
    router.bind("inproc://router")
    with pytest.raises(TransportError) as caught:
        _core.send_message(router, 1, b"", routing_id=b"nobody")
    assert caught.value.errno == errno.EHOSTUNREACH


def test_garbage_from_a_peer_is_refused_and_the_next_message_read(pair):
    push, pull = pair
    push.send_multipart([b"GET / HTTP/1.1", b"x" * 100])
    _core.send_message(push, 1, b"ok")
    with pytest.raises(ProtocolError):
        receive(pull)
    assert bytes(receive(pull).body) == b"ok"


def send_batch(socket, payloads, start=0, count=None):
    count = len(payloads) - start if count is None else count
    nbytes = sum(map(len, payloads[start : start + count]))
    peer = _core.Account(None, _core.Credit())
    return _core.send_batch(socket, peer, 3, payloads, start, count, nbytes)


def test_payloads_that_are_not_the_planned_ones_are_not_sent(pair):
    push, pull = pair
    peer = _core.Account(None, _core.Credit())
    for payloads, count, nbytes in [([b"long"], 1, 3), ([b"short"], 1, 6), ([b"one"], 2, 3)]:
        with pytest.raises(BufferError):
            _core.send_batch(push, peer, 3, payloads, 0, count, nbytes)
    assert _core.recv(pull) is None


def test_batches_end_where_told(pair):
    push, pull = pair
    items = [bytes([i]) * 10 for i in range(10)]
    assert _core.plan_batch(items, max_count=3) == (3, 30)
    assert _core.plan_batch(items, 3, max_nbytes=25) == (2, 20)
    assert _core.plan_batch(items, 5, max_nbytes=1) == (1, 10)
    for start, count in [(0, 3), (3, 2), (5, 1)]:
        assert send_batch(push, items, start, count)
    assert [len(receive(pull)) for _ in range(3)] == [3, 2, 1]


def test_a_closed_socket_is_refused(open_socket):
    push = open_socket(zmq.PUSH)
    push.close()
    with pytest.raises(TransportError, match="closed"):
        _core.send_message(push, 1, b"")


def test_a_non_contiguous_buffer_is_refused_before_anything_is_sent(pair):
    push, pull = pair
    with pytest.raises((BufferError, ValueError)):  # NumPy's is a ValueError
        _core.send_message(push, 1, b"", [np.zeros((10, 10))[:, ::2]])
    assert _core.recv(pull) is None


def test_a_forked_child_is_refused_the_parents_socket(pair):
    push, _ = pair
    assert _core.send_message(push, 1, b"")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _core.send_message(push, 1, b"")
            os.write(writer, b"sent")
        except TransportError:
            os.write(writer, b"refused")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 100) == b"refused"
    os.close(reader)
    os.waitpid(pid, 0)


def test_a_signal_handler_runs_while_polling(pair):
    _, pull = pair
    seen = threading.Event()
    previous = signal.signal(signal.SIGUSR1, lambda *_: seen.set())
    try:
        main_thread = threading.main_thread().ident

        def interrupt():
            time.sleep(0.1)
            signal.pthread_kill(main_thread, signal.SIGUSR1)

        thread = threading.Thread(target=interrupt)
        thread.start()
        _core.poll(pull, _core.POLLIN, 0.5)
        thread.join()
        assert seen.is_set()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_ten_thousand_messages_leak_nothing(pair):
    push, pull = pair
    large = bytearray(70_000)
    small = [b"x" * 64] * 100

    def exchange(count):
        for _ in range(count):
            _core.send_message(push, 1, b"body", [large, b"inline"])
            receive(pull)
            send_batch(push, small)
            receive(pull)
        gc.collect()

    exchange(1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exchange(10_000)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # 10,000 leaked frames would be 700 MB.
    assert grown_kib < 16 * 1024
    until(lambda: _core.lent_buffers() == 0)


# ---- chunks of streams ---------------------------------------------------------------------

KIB = 1024
#: Empty, inline, lent, cut in two and in many.
SIZES = [0, 5, 64 * KIB - 1, 64 * KIB, 0, 300 * KIB, 1, 2500 * KIB, 7, 0]


class Stream:
    """A value on its way between two sockets, without a link."""

    def __init__(self, sizes, *, chunk_nbytes=1024 * KIB, credit=1 << 40, window=None):
        rng = np.random.default_rng(len(sizes))
        self.sent = [rng.bytes(size) for size in sizes]
        self.tracker = _core.SendTracker()
        buffers = [memoryview(buffer) for buffer in self.sent]
        self.departure = _core.Departure(7, buffers, self.tracker, chunk_nbytes, 1024)
        self.landing = _core.Landing(7, struct.pack(f"<{len(sizes)}Q", *sizes))
        self.landing.allocate()
        self.sender = _core.Account(None, _core.Credit())
        self.sender.credit.limit = credit
        granted = _core.Credit()
        granted.limit = credit
        self.receiver = _core.Account(None, granted, window)
        self.receiver.landings = {7: self.landing}
        self.peers = {None: self.receiver}

    def receive(self, socket):
        assert _core.poll(socket, _core.POLLIN, 10)
        return _core.recv(socket, peers=self.peers)


def chunk_header(entries, offset, stream_id=7, body_nbytes=8):
    head = b"ZFST\x02\x07\0\0" + struct.pack("<QQQ", stream_id, len(entries), body_nbytes)
    return head + struct.pack(f"<{len(entries)}Q", *entries) + struct.pack("<Q", offset)


@pytest.mark.parametrize("sizes", [SIZES, [3], [5000 * KIB], [10] * 3000, [20 * 1024 * KIB]])
def test_what_departs_lands_in_its_place(pair, sizes):
    push, pull = pair
    stream = Stream(sizes)
    while stream.departure.offset < stream.departure.nbytes:
        assert stream.departure.send(push, stream.sender, 3)
        while stream.landing.received < stream.departure.offset:
            assert stream.receive(pull) is stream.landing
    assert stream.landing.whole
    assert [bytes(buffer) for buffer in stream.landing.take()] == stream.sent
    assert stream.tracker.wait(10)


def test_a_departure_sends_the_chunks_that_its_pieces_say(pair):
    push, pull = pair
    stream, same = Stream(SIZES), Stream(SIZES)
    while stream.departure.offset < stream.departure.nbytes:
        pieces, offset = same.departure.pieces(), same.departure.offset
        same.departure.advance(sum(map(len, pieces)))
        assert stream.departure.send(push, stream.sender, 1)
        assert stream.departure.offset == same.departure.offset
        message = receive(pull)
        assert (message.kind, message.flags, message.request_id) == (7, 0, 7)
        assert struct.unpack("<Q", message.body) == (offset,)
        assert message.buffers == pieces


def test_a_departure_stops_where_credit_or_buffers_end(pair):
    push, _ = pair
    cost = 1024 * KIB + _core.MESSAGE_COST
    stream = Stream([5 * 1024 * KIB], credit=3 * cost - 1)
    assert stream.departure.send(push, stream.sender, 100)
    assert stream.departure.offset == 2 * 1024 * KIB
    assert stream.sender.credit.used == 2 * cost
    stream.departure.release()
    stream.sender.credit.limit *= 10
    assert stream.departure.send(push, stream.sender, 100)
    assert stream.departure.offset == 2 * 1024 * KIB
    with pytest.raises(ValueError, match="more went out"):
        stream.departure.advance(1)


def test_a_departure_without_room_sends_nothing(open_socket):
    push = open_socket(zmq.PUSH)
    stream = Stream([300 * KIB])
    assert not stream.departure.send(push, stream.sender, 1)
    assert stream.departure.offset == stream.sender.credit.used == 0


def test_a_landing_comes_back_whenever_its_sender_should_be_granted_more(pair):
    push, pull = pair
    window = 16 * 1024 * KIB
    stream = Stream([9 * 1024 * KIB], credit=window, window=window)
    stream.departure.send(push, stream.sender, 100)
    stops = []
    while not stream.landing.whole:
        assert stream.receive(pull) is stream.landing
        if stream.receiver.grant_is_due:
            stops.append(stream.landing.received)
            stream.receiver.acknowledged_up_to(0, stream.receiver.next_limit())
    assert stops == [4 * 1024 * KIB, 8 * 1024 * KIB]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([b"x" * 99_999, b"y" * 100_000], "frame 1 has 99999 bytes, announced 100000"),
        ([b"x" * 100_000, b"y" * 100_001, b"z"], "frame 2 has 100001 bytes, announced 100000"),
        ([b"x" * 100_000], "buffer 1 has no frame"),
        ([b"x" * 100_000, b"y" * 100_000, b"z"], "left over"),
    ],
)
def test_frames_other_than_announced_are_refused_whole(pair, frames, message):
    push, pull = pair
    stream = Stream([100_000, 100_000])
    push.send_multipart([chunk_header([100_000, 100_000], 0), *frames])
    stream.departure.send(push, stream.sender, 1)
    with pytest.raises(ProtocolError, match=message):
        stream.receive(pull)
    assert stream.landing.received == 0
    assert stream.receive(pull) is stream.landing
    assert [bytes(buffer) for buffer in stream.landing.take()] == stream.sent


@pytest.mark.parametrize(
    "header",
    [
        chunk_header([100_000], 1),
        chunk_header([100_000], 0, stream_id=8),
        chunk_header([100_000], 100_000),
    ],
)
def test_chunks_of_no_landing_are_left_to_the_caller(pair, header):
    push, pull = pair
    stream = Stream([100_000])
    push.send_multipart([header, b"x" * 100_000])
    assert stream.receive(pull).kind == 7
    assert stream.landing.received == 0


def test_a_chunk_beyond_what_was_granted_is_left_to_the_caller(pair):
    push, pull = pair
    stream = Stream([100_000], credit=100_000, window=100_000)
    push.send_multipart([chunk_header([100_000], 0), b"x" * 100_000])
    message = stream.receive(pull)
    with pytest.raises(ProtocolError, match="were granted"):
        stream.receiver.count_arrived(message.nbytes - len(message.body))
    assert stream.landing.received == 0


words = st.one_of(
    st.sampled_from([0, 1, 8, 70_000, (1 << 63) | 10, (1 << 63) | 70_000, 1 << 62, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


chunks = st.tuples(
    st.lists(words, max_size=5),
    st.integers(0, 2),
    st.sampled_from([7, 7, 7, 8]),
    st.sampled_from([8, 8, 8, 0, 9, 1 << 40]),
    st.binary(max_size=200),
    st.lists(st.sampled_from([0, 1, 10, 70_000]), max_size=4),
)


def test_no_header_frame_writes_where_it_should_not(open_socket):
    pull, push = open_socket(zmq.PULL), open_socket(zmq.PUSH)
    pull.bind("inproc://fuzz")
    push.connect("inproc://fuzz")

    @given(chunks)
    def check(chunk):
        entries, offset, stream_id, body_nbytes, tail, frames = chunk
        stream = Stream([10, 70_000, 0, 8])
        header = chunk_header(entries, offset, stream_id, body_nbytes) + tail
        push.send_multipart([header, *(bytes(size) for size in frames)])
        _core.send_message(push, 1, b"next")
        seen = []
        while not seen or seen[-1] != b"next":
            try:
                message = stream.receive(pull)
            except ProtocolError as error:
                seen.append(error)
            else:
                seen.append(getattr(message, "body", message))
        assert len(seen) <= 2
        assert stream.landing.received <= stream.landing.nbytes == 70_018

    check()


def test_a_landing_says_what_is_wrong():
    landing = _core.Landing(1, struct.pack("<2Q", (1 << 64) - 1, 1))
    assert landing.nbytes == (1 << 64) - 1
    with pytest.raises(MemoryError, match="no memory to receive"):
        landing.allocate()
    landing = _core.Landing(1, struct.pack("<2Q", 3, 2))
    with pytest.raises(ProtocolError, match="before it was accepted"):
        landing.write([b"abc"])
    landing.allocate()
    with pytest.raises(ProtocolError, match=r"4 bytes in stream 1, where 3 are left"):
        landing.write([b"abcd"])
    with pytest.raises(ProtocolError, match="is empty"):
        landing.write([b""])
    landing.write([b"abc", b"d"])
    with pytest.raises(ProtocolError, match="4 of 5 bytes"):
        landing.take()
    with pytest.raises(ProtocolError, match="came twice"):
        landing.expect(3)
    landing.write([b"e"])
    assert [bytes(buffer) for buffer in landing.take()] == [b"abc", b"de"]
    with pytest.raises(ProtocolError, match="before it was accepted"):
        landing.write([b"e"])
