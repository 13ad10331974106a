"""Channels between threads and real processes: order, time-outs, closing, and bad peers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zmq

from zfast import Channel
from zfast.addresses import InsecureEndpointWarning
from zfast.errors import (
    ChannelClosedError,
    CodecError,
    ConfigError,
    ProtocolError,
    RecvTimeoutError,
    SendTimeoutError,
    TransportError,
)


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def endpoint(request, short_folder):
    if request.param == "tcp":
        return "tcp://127.0.0.1:*"
    return f"ipc://{short_folder}/s" if request.param == "ipc" else f"inproc://{short_folder.name}"


@pytest.fixture
def channels(endpoint):
    """A bound and a connected channel, closed by the test or thrown away."""
    insecure = endpoint.startswith("tcp")
    if insecure:
        with pytest.warns(InsecureEndpointWarning, match="not encrypted"):
            rx = Channel.bind(endpoint, insecure=True)
        with pytest.warns(InsecureEndpointWarning):
            tx = Channel.connect(rx.endpoint, insecure=True)
    else:
        rx = Channel.bind(endpoint)
        tx = Channel.connect(endpoint)
    yield rx, tx
    tx.abort()
    rx.abort()


@pytest.fixture
def ipc(short_folder):
    return f"ipc://{short_folder}/s"


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_values_arrive_in_order_and_equal(channels):
    rx, tx = channels
    frame = pd.DataFrame({"x": np.arange(200_000.0), "name": ["a", "b"] * 100_000})
    tx.send({"answer": 42})
    tx.send(frame)
    assert rx.recv(timeout=10) == {"answer": 42}
    pd.testing.assert_frame_equal(rx.recv(timeout=10), frame)
    tx.close()
    rx.close()


def test_both_sides_may_send(channels):
    rx, tx = channels
    tx.send("ping")
    assert rx.recv(timeout=10) == "ping"
    rx.send("pong")
    assert tx.recv(timeout=10) == "pong"


def test_the_bound_side_may_speak_first(channels):
    rx, tx = channels
    got = []
    receiver = in_thread(lambda: got.append(tx.recv(timeout=10)))
    rx.send("hello", timeout=10)
    receiver.join()
    assert got == ["hello"]


def test_what_was_sent_may_be_changed_afterwards(channels):
    rx, tx = channels
    array = np.zeros(1_000_000)
    tx.send(array)
    array[:] = 1
    assert rx.recv(timeout=10).sum() == 0


def test_received_arrays_are_read_only_unless_copied(channels):
    rx, tx = channels
    tx.send(np.zeros(100_000))
    tx.send(np.zeros(100_000))
    with pytest.raises(ValueError, match="read-only"):
        rx.recv(timeout=10)[0] = 1
    private = rx.recv(timeout=10, copy=True)
    private[0] = 1


def test_send_view_borrows_until_the_tracker_is_done(channels):
    rx, tx = channels
    array = np.zeros(1_000_000)
    tracker = tx.send_view(array)
    received = rx.recv(timeout=10)
    assert received.sum() == 0
    if tx.endpoint.startswith("inproc"):
        assert np.shares_memory(received, array)
        assert not tracker.done
    del received
    assert tracker.wait(10)


def test_send_view_waits_for_its_peer(ipc):
    array = np.zeros(1_000_000)
    with Channel.connect(ipc) as tx:
        with pytest.raises(SendTimeoutError, match=r"no peer took the message in 0\.05 s"):
            tx.send_view(array, timeout=0.05)
        sender = in_thread(lambda: tx.send_view(array, timeout=10))
        with Channel.bind(ipc) as rx:
            sender.join()
            assert rx.recv(timeout=10).sum() == 0


def test_many_small_payloads_arrive_as_batches(channels):
    rx, tx = channels
    payloads = [b"%06d" % i for i in range(200_000)]
    sender = in_thread(tx.send_many, payloads)
    received = []
    while len(received) < len(payloads):
        received += rx.recv_many(timeout=10).to_bytes_list()
    sender.join()
    assert received == payloads
    tx.close()


def test_a_batch_and_a_value_are_not_mistaken_for_each_other(channels):
    rx, tx = channels
    tx.send("value")
    tx.send_many([b"a", b"b"])
    with pytest.raises(ConfigError, match="a value, not a batch"):
        rx.recv_many(timeout=10)
    assert rx.recv(timeout=10) == "value"
    assert [bytes(item) for item in rx.recv(timeout=10)] == [b"a", b"b"]


def test_nothing_comes_in_time(channels):
    rx, tx = channels
    for channel in (rx, tx):
        with pytest.raises(RecvTimeoutError, match=r"nothing came in 0\.05 s"):
            channel.recv(timeout=0.05)
    assert issubclass(RecvTimeoutError, TimeoutError)


def test_nobody_is_there_in_time(ipc):
    with (
        Channel.connect(ipc) as tx,
        pytest.raises(SendTimeoutError, match="no peer took the message"),
    ):
        tx.send(1, timeout=0.05)
    with Channel.bind(ipc) as rx, pytest.raises(SendTimeoutError, match="no peer connected"):
        rx.send(1, timeout=0.05)


def test_the_other_side_may_come_later(ipc):
    with Channel.connect(ipc) as tx:
        sender = in_thread(tx.send, "early")
        time.sleep(0.1)
        with Channel.bind(ipc) as rx:
            assert rx.recv(timeout=10) == "early"
            sender.join()


def _sends(channel, value):
    try:
        channel.send(value, timeout=0.3)
    except SendTimeoutError:
        return False
    return True


def _drain(channel):
    values = []
    while True:
        try:
            values.append(channel.recv(timeout=0.5))
        except RecvTimeoutError:
            return values


def test_a_slow_receiver_holds_the_sender_back(ipc):
    with Channel.bind(ipc, hwm=1) as rx, Channel.connect(ipc, hwm=1) as tx:
        array = np.zeros(1_000_000)
        sent = 0
        while _sends(tx, array):
            sent += 1
            assert sent < 1000
        for _ in range(sent):
            rx.recv(timeout=10)
        assert len(_drain(rx)) <= 1  # the one that was under way


def test_close_waits_until_everything_is_read(ipc):
    """Far more than the socket buffers and the high-water mark hold, to a slow reader."""
    receiver = python(
        """
        import sys, time
        from zfast import Channel
        with Channel.bind(sys.argv[1], hwm=10) as rx:
            print("ready", flush=True)
            total = 0
            while total < 30_000:
                total += len(rx.recv_many(timeout=30))
                time.sleep(0.001)
            print(total)
        """,
        ipc,
    )
    assert receiver.stdout.readline() == "ready\n"
    with Channel.connect(ipc, hwm=10) as tx:
        for _ in range(300):
            tx.send_many([b"x" * 64] * 100)
    out, err = receiver.communicate(timeout=60)
    assert out == "30000\n", err
    assert receiver.returncode == 0


def test_a_sender_that_exits_at_once_loses_nothing(ipc):
    with Channel.bind(ipc, hwm=5) as rx:
        sender = python(
            """
            import sys
            from zfast import Channel
            with Channel.connect(sys.argv[1], hwm=5) as tx:
                for i in range(2000):
                    tx.send(i)
            """,
            ipc,
        )
        time.sleep(0.5)  # let its queue fill: that is when a closed ipc connection loses its tail
        assert [rx.recv(timeout=30) for _ in range(2000)] == list(range(2000))
        _, err = sender.communicate(timeout=30)
        assert sender.returncode == 0, err


def test_close_tells_what_was_not_read(ipc):
    rx, tx = Channel.bind(ipc), Channel.connect(ipc)
    for i in range(3):
        tx.send(i)
    assert rx.recv(timeout=10) == 0
    rx.close()
    with pytest.raises(ChannelClosedError, match="closed before everything") as caught:
        tx.close(timeout=10)
    assert "2 messages" in str(caught.value)
    assert tx.closed


def test_close_gives_up_on_a_killed_peer(ipc):
    receiver = python(
        """
        import sys, time
        from zfast import Channel
        rx = Channel.bind(sys.argv[1])
        print("ready", flush=True)
        time.sleep(60)
        """,
        ipc,
    )
    receiver.stdout.readline()
    tx = Channel.connect(ipc)
    tx.send("lost")
    receiver.send_signal(signal.SIGKILL)
    receiver.communicate()
    with pytest.raises(ChannelClosedError, match="1 messages are unacknowledged"):
        tx.close(timeout=0.5)


def test_a_receiver_learns_that_its_peer_closed(ipc):
    with Channel.bind(ipc) as rx, Channel.connect(ipc) as tx:
        tx.send(1)
        assert rx.recv(timeout=10) == 1
        rx.close()
        with pytest.raises(ChannelClosedError, match="the peer has closed"):
            tx.recv(timeout=10)


def test_a_closed_channel_says_so_and_closes_again_quietly(ipc):
    channel = Channel.bind(ipc)
    channel.close()
    channel.close()
    channel.abort()
    assert channel.closed
    with pytest.raises(ChannelClosedError, match="is closed"):
        channel.recv(timeout=1)


def test_several_peers_are_received_in_turn_and_answered_by_name(ipc):
    with Channel.bind(ipc) as rx:
        first, second = Channel.connect(ipc), Channel.connect(ipc)
        first.send("first")
        second.send("second")
        assert {rx.recv(timeout=10), rx.recv(timeout=10)} == {"first", "second"}
        assert len(rx.peers) == 2
        with pytest.raises(ConfigError, match="2 peers are connected"):
            rx.send("whom?")
        for peer in rx.peers:
            rx.send("answer", to=peer)
        assert first.recv(timeout=10) == second.recv(timeout=10) == "answer"
        first.close()
        second.close()
        with pytest.raises(ChannelClosedError, match="no peer"):
            rx.send("gone", to=b"nobody")


def test_a_stranger_that_talks_garbage_is_refused_and_harms_nobody(ipc):
    with Channel.bind(ipc) as rx, zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(ipc)
        stranger.send_multipart([b"GET / HTTP/1.1", b"\r\n"])
        with pytest.raises(ProtocolError, match="fewer than 32"):
            rx.recv(timeout=10)
        with Channel.connect(ipc) as tx:
            tx.send("fine")
            assert rx.recv(timeout=10) == "fine"


def test_a_value_that_cannot_be_sent_leaves_the_channel_usable(channels):
    rx, tx = channels
    with pytest.raises(CodecError, match="lock"):
        tx.send(threading.Lock())
    tx.send("fine")
    assert rx.recv(timeout=10) == "fine"


def test_two_threads_at_once_are_told(ipc):
    with Channel.bind(ipc) as rx:
        entered = threading.Event()

        def receive():
            entered.set()
            with pytest.raises(RecvTimeoutError):
                rx.recv(timeout=1)

        receiver = in_thread(receive)
        entered.wait()
        time.sleep(0.1)
        with pytest.raises(ConfigError, match="two threads"):
            rx.recv(timeout=1)
        receiver.join()


def test_an_interrupt_ends_a_wait(ipc):
    receiver = python(
        """
        import sys
        from zfast import Channel
        with Channel.bind(sys.argv[1]) as rx:
            print("ready", flush=True)
            try:
                rx.recv()
            except KeyboardInterrupt:
                print("interrupted")
        """,
        ipc,
    )
    receiver.stdout.readline()
    time.sleep(0.1)
    os.kill(receiver.pid, signal.SIGINT)
    out, err = receiver.communicate(timeout=10)
    assert (out, receiver.returncode) == ("interrupted\n", 0), err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not an endpoint"),
        ("udp://x:1", "not an endpoint"),
        ("ipc://", "not an endpoint"),
        ("ipc://relative.sock", "not an absolute path"),
        (None, "an endpoint is a string"),
        ("ipc:///" + "x" * 200, "longer than"),
        ("tcp://127.0.0.1", "not tcp://host:port"),
        ("tcp://127.0.0.1:70000", "not tcp://host:port"),
        ("tcp://127.0.0.1:5555", "open to anyone"),
    ],
)
def test_bad_endpoints_are_refused(url, message):
    for make in (Channel.bind, Channel.connect):
        with pytest.raises(ConfigError, match=message):
            make(url)


def test_bad_arguments_are_refused(ipc):
    with pytest.raises(ConfigError, match="hwm must be"):
        Channel.bind(ipc, hwm="3")
    with Channel.bind(ipc) as channel:
        for timeout in (-1, "1"):
            with pytest.raises(ConfigError, match="number of seconds"):
                channel.recv(timeout=timeout)
        with pytest.raises(ConfigError, match="a sequence of bytes-like"):
            channel.send_many(b"abc")


def test_plain_tcp_is_for_loopback_only():
    with pytest.raises(ConfigError, match="not a loopback address"):
        Channel.bind("tcp://0.0.0.0:5555", insecure=True)


def test_an_endpoint_in_use_is_refused(short_folder):
    with pytest.raises(TransportError, match="cannot bind"):
        Channel.bind(f"ipc://{short_folder}/missing/folder/s")
    with Channel.bind(f"ipc://{short_folder}/taken") as first:
        with pytest.raises(TransportError, match="in use"):
            Channel.bind(first.endpoint)
        with Channel.connect(first.endpoint) as tx:
            tx.send(1)
            assert first.recv(timeout=10) == 1
    assert not (short_folder / "taken").exists()
    with Channel.bind("inproc://taken"), pytest.raises(TransportError, match="in use"):
        Channel.bind("inproc://taken")


@pytest.mark.parametrize(
    ("make", "what"), [(Path.touch, "a file that is no socket"), (Path.mkdir, "a folder")]
)
def test_what_is_at_an_endpoints_path_and_is_no_socket_stays(tmp_path, make, what):
    path = tmp_path / "chan.txt"
    make(path)
    with pytest.raises(ConfigError, match=f"cannot bind ipc://{path}: there is {what}"):
        Channel.bind(f"ipc://{path}")
    assert path.is_file() or path.is_dir()
