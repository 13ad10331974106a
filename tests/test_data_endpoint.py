"""The data endpoint of a foreman and the client that fetches from it: right, bounded, guarded."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import resource
import secrets
import threading
import time

import msgspec
import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from security_peers import Records, mutate
from tcp_proxy import Proxy
from zfast import _core, arena
from zfast.context import process_context
from zfast.errors import (
    ArenaError,
    ArenaFullError,
    ConfigError,
    HandshakeError,
    ProtocolError,
    ResultLostError,
    TransportError,
    ZfastError,
)
from zfast.runner.data_client import DataClient, DataPeer
from zfast.runner.data_protocol import CHUNK_NBYTES, DATA_MESSAGES, WINDOW, Ask, Missing, Piece
from zfast.runner.data_server import ANSWERS_HWM, DataServer
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair, PublicKey
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity
from zfast.sharing.descriptor import Descriptor

pytestmark = pytest.mark.compiled  # what is fetched lies in the arena
CLIENT = KeyPair.generate("client")
STRANGER = KeyPair.generate("stranger")


class Host:
    """What a foreman has: memory by descriptor, and an endpoint served on a thread of its own."""

    def __init__(self, url, pair=None):
        self._memory = {}
        self._poller = zmq.Poller()
        self._commands = []
        self._wake_receiver, self._wake_sender = os.pipe()
        self._poller.register(self._wake_receiver, zmq.POLLIN)
        self._stopped = False
        self.n_reads = 0
        self.drops_after = float("inf")
        self.failure = None
        self.server = DataServer(url, pair, self._read, self._poller)
        self.peer = DataPeer(self.server.endpoint, self.server.public_key)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def hold(self, data):
        descriptor = Descriptor(secrets.token_bytes(16), 1, 4096, len(data))
        self._memory[descriptor] = memoryview(data).toreadonly()
        return descriptor

    def drop(self, descriptor):
        del self._memory[descriptor]

    def call(self, command):
        """Run something on the server's thread, and wait for it."""
        done = threading.Event()
        self._commands.append(lambda: (command(), done.set()))
        os.write(self._wake_sender, b"\0")
        assert done.wait(30)

    def admit(self, *pairs):
        self.call(lambda: self.server.admit([pair.public.z85 for pair in pairs]))

    def close(self):
        if self._stopped:
            return
        self.call(lambda: setattr(self, "_stopped", True))
        self._thread.join()
        os.close(self._wake_receiver)
        os.close(self._wake_sender)

    def _read(self, descriptor):
        self.n_reads += 1
        if self.failure is not None:
            raise self.failure
        return self._memory.get(descriptor) if self.n_reads <= self.drops_after else None

    def _run(self):
        while not self._stopped:
            if self._wake_receiver in dict(self._poller.poll()):
                os.read(self._wake_receiver, 1)
                self._commands.pop(0)()
            self.server.serve()
        self.server.close()


class Guest:
    """A client, driven by whoever waits for something."""

    def __init__(self, pair=None, patience_s=10.0):
        self._poller = zmq.Poller()
        self._wakers = os.pipe()  # as a foreman's; a poller of nothing does not wait
        self._poller.register(self._wakers[0], zmq.POLLIN)
        self.client = DataClient(pair, self._poller, patience_s=patience_s)
        self.outcomes = {}
        self.n_turns = 0

    def close(self):
        self.client.close()
        for waker in self._wakers:
            os.close(waker)
        self._wakers = ()

    def fetch(self, descriptor, peer):
        self.client.fetch(
            descriptor, peer, lambda outcome: self.outcomes.__setitem__(descriptor, outcome)
        )

    def turn_until(self, condition, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            until = min(deadline, self.client.next_turn)
            self._poller.poll(max(0, int((until - time.monotonic()) * 1000) + 1))
            self.client.turn()
            self.n_turns += 1

    def get(self, *descriptors):
        """The bytes of some fetches, or what went wrong."""
        self.turn_until(lambda: all(wanted in self.outcomes for wanted in descriptors))
        outcomes = [self.outcomes.pop(wanted) for wanted in descriptors]
        return [o if isinstance(o, ZfastError) else bytes(o) for o in outcomes]


@pytest.fixture(params=["ipc", "tcp"])
def host(request, start_host):
    return start_host(request.param)


@pytest.fixture
def tcp_host(start_host):
    return start_host("tcp")


@pytest.fixture
def start_host(short_folder):
    """Starts hosts; when they are closed nothing of them is left."""
    hosts, folder = [], short_folder / "hosts"
    folder.mkdir()

    def start(scheme):
        if scheme == "ipc":
            hosts.append(Host(f"ipc://{folder}/{len(hosts)}"))
        else:
            hosts.append(Host("tcp://127.0.0.1:*", KeyPair.generate()))
            hosts[-1].admit(CLIENT)
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()
    assert list(folder.iterdir()) == []


@pytest.fixture
def start_guest():
    guests = []

    def start(pair=CLIENT, patience_s=10.0):
        guests.append(Guest(pair, patience_s))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(start_guest):
    return start_guest()


@pytest.fixture
def proxy(tcp_host):
    """The way to ``tcp_host``, to be fetched from at ``proxy.peer``."""
    proxy = Proxy(tcp_host.peer.endpoint)
    proxy.peer = DataPeer(proxy.endpoint, tcp_host.peer.public_key)
    yield proxy
    proxy.close()


def settled(condition, timeout_s=20.0):
    """Whether a condition comes true: libzmq closes on a thread of its own."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        gc.collect()
        time.sleep(0.01)
    return True


def fetched(guest, host, data, peer=None):
    descriptor = host.hold(data)
    guest.fetch(descriptor, peer or host.peer)
    return guest.get(descriptor)[0]


# ---- what is fetched ------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(1, 4096),
    st.builds(
        lambda n, more: max(1, n * CHUNK_NBYTES + more), st.integers(0, 20), st.integers(-2, 2)
    ),
)


def test_what_is_fetched_is_what_was_there(host, guest):
    @settings(max_examples=20)
    @given(sizes=st.lists(SIZES, min_size=1, max_size=4), seed=st.integers(0, 2**32))
    def check(sizes, seed):
        data = [random.Random(seed + i).randbytes(size) for i, size in enumerate(sizes)]
        descriptors = [host.hold(each) for each in data]
        for descriptor in descriptors:
            guest.fetch(descriptor, host.peer)
        assert guest.get(*descriptors) == data

    check()


def test_many_fetches_from_several_hosts_at_once(start_host, guest):
    hosts = [start_host(scheme) for scheme in ("ipc", "tcp", "ipc", "tcp")]
    rng = random.Random(1)
    wanted = {}
    for _ in range(300):
        host, data = rng.choice(hosts), rng.randbytes(rng.randrange(1, 600_000))
        descriptor = host.hold(data)
        wanted[descriptor] = data
        guest.fetch(descriptor, host.peer)
    assert guest.get(*wanted) == list(wanted.values())


def test_several_hosts_fetch_the_same(start_host, start_guest):
    host = start_host("ipc")
    data = random.Random(2).randbytes(9 * CHUNK_NBYTES + 7)
    descriptor = host.hold(data)
    guests = [start_guest() for _ in range(4)]
    for guest in guests:
        guest.fetch(descriptor, host.peer)
    for guest in guests:
        assert guest.get(descriptor) == [data]


def test_it_lies_in_the_arena_and_can_be_published(host, guest):
    data = os.urandom(3 * CHUNK_NBYTES)
    descriptor = host.hold(data)
    blocks = []
    guest.client.fetch(descriptor, host.peer, blocks.append)
    guest.turn_until(lambda: blocks)
    publication = arena.publish(blocks[0].address, len(data), exclusive=True)
    assert publication is not None
    view = arena.own_view(publication.segment_index, publication.offset, len(data), None)
    assert bytes(view) == data
    assert arena.unpublish(publication.generation)


def test_what_is_not_there_is_said_and_hurts_no_other(host, guest):
    data = os.urandom(5 * CHUNK_NBYTES)
    here, gone = host.hold(data), host.hold(bytes(40 * CHUNK_NBYTES))
    host.drop(gone)
    other_segment = msgspec.structs.replace(here, segment_id=secrets.token_bytes(16))
    stale = msgspec.structs.replace(here, generation=2)
    for descriptor in (gone, other_segment, here, stale):
        guest.fetch(descriptor, host.peer)
    *missing, found = guest.get(gone, other_segment, stale, here)
    assert found == data
    for error in missing:
        assert isinstance(error, ResultLostError)
        assert host.peer.endpoint in str(error)
    assert str(missing[0]).endswith(f"has no {gone}")


def test_what_goes_on_the_way_is_said(host, guest):
    descriptor = host.hold(bytes(200 * CHUNK_NBYTES))
    host.drops_after = 20
    guest.fetch(descriptor, host.peer)
    assert "has no segment" in str(guest.get(descriptor)[0])
    host.drops_after = float("inf")
    assert fetched(guest, host, b"more") == b"more"


def test_what_cannot_be_read_counts_as_missing(host, guest, caplog):
    descriptor = host.hold(b"data")
    host.failure = ArenaError("it cannot be mapped")
    guest.fetch(descriptor, host.peer)
    assert "has no segment" in str(guest.get(descriptor)[0])
    assert "it cannot be mapped" in caplog.text
    host.failure = None
    guest.fetch(descriptor, host.peer)
    assert guest.get(descriptor) == [b"data"]


def test_what_has_no_room_is_said_and_hurts_no_other(host, guest):
    before = arena.statistics().n_blocks
    too_large = Descriptor(secrets.token_bytes(16), 1, 0, 1 << 50)
    guest.fetch(too_large, host.peer)
    assert fetched(guest, host, b"small") == b"small"
    assert isinstance(guest.get(too_large)[0], ArenaFullError)
    assert arena.statistics().n_blocks == before


def test_a_peer_need_not_wait_until_there_is_room(tcp_host, proxy, start_guest):
    guest = start_guest(patience_s=1.0)
    data = random.Random(11).randbytes(40 * CHUNK_NBYTES)
    descriptor = tcp_host.hold(data)
    busy, waited = threading.Event(), threading.Event()
    guest.client._room._thread.submit(busy.wait)
    guest.fetch(descriptor, proxy.peer)
    for _ in range(2):  # a cut while there is no room does no harm
        threading.Timer(1.5, waited.set).start()
        guest.turn_until(waited.is_set)
        waited.clear()
        proxy.cut()
    assert tcp_host.n_reads == 0
    busy.set()
    assert guest.get(descriptor) == [data]


def test_a_fetch_is_begun_once_and_of_what_can_be(host, guest):
    descriptor = host.hold(b"data")
    guest.fetch(descriptor, host.peer)
    with pytest.raises(ConfigError, match="is being fetched already"):
        guest.fetch(descriptor, host.peer)
    with pytest.raises(ProtocolError, match="malformed descriptor"):
        guest.fetch(msgspec.structs.replace(descriptor, nbytes=0), host.peer)
    assert guest.get(descriptor) == [b"data"]


def test_what_is_cancelled_is_never_heard_of(host, guest):
    before = arena.statistics().n_blocks
    data = random.Random(3).randbytes(30 * CHUNK_NBYTES)
    descriptors = [host.hold(data) for _ in range(4)]
    for descriptor in descriptors:
        guest.fetch(descriptor, host.peer)
    guest.turn_until(lambda: host.n_reads > 5)
    guest.client.cancel(descriptors[0])
    guest.client.cancel(descriptors[2])
    guest.client.cancel(host.hold(b"never fetched"))
    assert guest.get(descriptors[1], descriptors[3]) == [data, data]
    assert guest.outcomes == {}
    assert arena.statistics().n_blocks == before
    guest.fetch(descriptors[0], host.peer)
    assert guest.get(descriptors[0]) == [data]


def test_who_is_told_may_fetch_and_cancel(host, guest):
    data = os.urandom(2 * CHUNK_NBYTES)
    first, second, third, never = (host.hold(data) for _ in range(4))

    def on_first(outcome):
        guest.client.cancel(never)
        guest.fetch(third, host.peer)

    guest.client.fetch(first, host.peer, on_first)
    guest.fetch(second, host.peer)
    guest.client.fetch(never, host.peer, pytest.fail)
    assert guest.get(second, third) == [data, data]


# ---- who may come in ------------------------------------------------------------------------


def test_a_stranger_is_refused_and_learns_nothing(tcp_host, start_guest):
    descriptor = tcp_host.hold(b"secret")
    stranger = start_guest(STRANGER)
    stranger.fetch(descriptor, tcp_host.peer)
    error = stranger.get(descriptor)[0]
    assert isinstance(error, HandshakeError)
    assert tcp_host.peer.endpoint in error.message
    assert STRANGER.public.fingerprint in error.message
    assert tcp_host.n_reads == 0


def test_a_key_may_be_let_in_a_little_after_it_came(tcp_host, start_guest):
    data = os.urandom(3 * CHUNK_NBYTES)
    descriptor = tcp_host.hold(data)
    late = start_guest(STRANGER)
    with Records() as records:
        late.fetch(descriptor, tcp_host.peer)
        late.turn_until(lambda: any("unknown key" in text for text in records.texts))
    tcp_host.admit(CLIENT, STRANGER)
    assert late.get(descriptor) == [data]


def test_a_key_that_is_taken_out_is_cut(tcp_host, proxy, guest):
    data = random.Random(4).randbytes(64 * CHUNK_NBYTES)
    descriptor = tcp_host.hold(data)
    proxy.pause_s = 0.005
    guest.fetch(descriptor, proxy.peer)
    guest.turn_until(lambda: tcp_host.n_reads > 2)
    with Records() as records:
        tcp_host.admit(STRANGER)
        records.wait_for("cut", "no longer allowed")
    n_reads = tcp_host.n_reads
    error = guest.get(descriptor)[0]
    assert isinstance(error, HandshakeError)
    assert "refused our key" in error.message
    assert tcp_host.n_reads == n_reads < 64
    tcp_host.admit(CLIENT)
    proxy.pause_s = 0.0
    guest.fetch(descriptor, proxy.peer)
    assert guest.get(descriptor) == [data]


def test_who_stays_in_is_not_cut_with_the_others(tcp_host, proxy, guest, start_guest):
    data = random.Random(5).randbytes(32 * CHUNK_NBYTES)
    descriptor = tcp_host.hold(data)
    proxy.pause_s = 0.002
    guest.fetch(descriptor, proxy.peer)
    guest.turn_until(lambda: tcp_host.n_reads > 2)
    other = start_guest(STRANGER)
    tcp_host.admit(CLIENT, STRANGER)
    assert fetched(other, tcp_host, b"data") == b"data"
    with Records() as records:
        tcp_host.admit(CLIENT)
        records.wait_for("cut", "no longer allowed")
    assert guest.get(descriptor) == [data]
    assert proxy.n_connections == 1


def test_what_is_no_key_changes_nothing(tcp_host, guest):
    def admit():
        with pytest.raises(ConfigError, match="no public CURVE key"):
            tcp_host.server.admit([STRANGER.public.z85, "nonsense"])

    tcp_host.call(admit)
    assert fetched(guest, tcp_host, b"data") == b"data"


def test_another_host_in_its_place_is_not_believed(tcp_host, start_guest):
    guest = start_guest(patience_s=1.0)
    descriptor = tcp_host.hold(b"data")
    guest.fetch(descriptor, DataPeer(tcp_host.peer.endpoint, STRANGER.public.z85))
    error = guest.get(descriptor)[0]
    assert isinstance(error, HandshakeError)
    assert "is not who we were told" in error.message


def test_tcp_takes_keys(tcp_host, start_guest):
    with pytest.raises(ConfigError, match="tcp takes keys"):
        DataServer("tcp://127.0.0.1:*", None, lambda _: None, zmq.Poller())
    with pytest.raises(ConfigError, match="reaches no other process"):
        DataServer("inproc://data", None, lambda _: None, zmq.Poller())
    descriptor = tcp_host.hold(b"data")
    for pair, peer in [
        (None, tcp_host.peer),
        (CLIENT, DataPeer(tcp_host.peer.endpoint)),
        (CLIENT, DataPeer("http://host", tcp_host.peer.public_key)),
    ]:
        guest = start_guest(pair)
        guest.fetch(descriptor, peer)
        assert isinstance(guest.get(descriptor)[0], ConfigError)


def test_an_endpoint_in_use_is_said(start_host):
    port = start_host("tcp").peer.endpoint
    poller = zmq.Poller()
    with pytest.raises(TransportError, match="cannot bind"):
        DataServer(port, KeyPair.generate(), lambda _: None, poller)
    with pytest.raises(TransportError, match="cannot fetch data at ipc:///nowhere/data"):
        DataServer("ipc:///nowhere/data", None, lambda _: None, poller)
    assert poller.sockets == []


def test_clients_of_a_security_from_files_are_not_replaced(tmp_path, monkeypatch):
    from zfast.security.key_folder import KeyFolder

    KeyFolder(tmp_path).new("default", "server")
    security = ServerSecurity.load(folder=tmp_path)
    with pytest.raises(ConfigError, match="files"):
        security.replace_clients([(CLIENT.public, Role.WORKER)])
    security.close()


# ---- what peers may do wrong ----------------------------------------------------------------


@pytest.fixture
def intruder(host):
    """Whoever is let in and says what it likes."""
    with process_context().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvhwm = 1
        if host.peer.public_key:
            server = PublicKey(host.peer.public_key)
            ClientSecurity(CLIENT, [server]).guard(socket, host.peer.endpoint)
        socket.connect(host.peer.endpoint)
        yield socket


def ask(socket, descriptor, offset=0, nbytes=1, number=1):
    kind, body = DATA_MESSAGES.encode(Ask(descriptor, offset, nbytes))
    assert _core.send_message(socket, kind, body, request_id=number)


def answer(socket, timeout_s=20.0):
    assert socket.poll(timeout_s * 1000)
    message = _core.recv(socket)
    decoded = DATA_MESSAGES.decode(message.kind, message.body)
    return message.request_id, decoded, [bytes(buffer) for buffer in message.buffers]


def test_forged_questions_get_no_data(host, intruder, guest):
    descriptor = host.hold(os.urandom(4 * CHUNK_NBYTES))
    change = msgspec.structs.replace
    for forged, offset, nbytes in [
        (descriptor, -1, 10),
        (descriptor, 0, 0),
        (descriptor, 0, -1),
        (descriptor, 0, CHUNK_NBYTES + 1),
        (descriptor, 4 * CHUNK_NBYTES, 1),
        (descriptor, 4 * CHUNK_NBYTES - 9, 10),
        (descriptor, (1 << 63) - 1, 10),
        (descriptor, (1 << 64) - 1, 1),
        (change(descriptor, nbytes=1 << 62), 1 << 40, 10),
        (change(descriptor, nbytes=-1), 0, 1),
        (change(descriptor, offset=-1), 0, 1),
        (change(descriptor, generation=0), 0, 1),
        (change(descriptor, segment_id=b""), 0, 1),
        (change(descriptor, segment_id=bytes(1000)), 0, 1),
    ]:
        ask(intruder, forged, offset, nbytes)
    for other in [
        change(descriptor, segment_id=secrets.token_bytes(16)),
        change(descriptor, generation=2),
        change(descriptor, offset=0),
        change(descriptor, nbytes=1 << 61),
    ]:
        ask(intruder, other)
        assert answer(intruder) == (1, Missing(), [])
    assert fetched(guest, host, b"data") == b"data"


def test_torn_messages_hurt_nobody(host, intruder, guest):
    descriptor = host.hold(b"data")
    kind, body = DATA_MESSAGES.encode(Ask(descriptor, 0, 4))
    rng = random.Random(6)
    [whole] = _frames(kind, body)
    for frames in [
        [b""],
        [b"", b""],
        [b"ZFST"],
        [whole, whole],
        [whole, b""],
        [whole[:-1]],
        [whole + b"\0"],
        [b"", whole],
        [rng.randbytes(4096)],
        [b"x"] * 2000,
        [_core.pack([b"a", b"b"])],
        _frames(kind, body, [b"buffer"]),
        _frames(kind, body, [bytes(100_000)]) if host.peer.public_key == "" else [b""],
        _frames(kind, b""),
        _frames(kind, b"\xc1"),
        _frames(kind, b"\x93" * 4000),
        _frames(0, body),
        _frames(255, body),
        _frames(*DATA_MESSAGES.encode(Piece())),
        _frames(*DATA_MESSAGES.encode(Missing())),
    ]:
        intruder.send_multipart(frames)
    for _ in range(2000):
        intruder.send(mutate(rng, whole))
    # Among the mutated there are questions that make sense, such as for another generation.
    ask(intruder, descriptor, 0, 4, number=1 << 63)
    while (got := answer(intruder))[0] != 1 << 63:
        assert isinstance(got[1], Missing) or b"data".find(got[2][0]) >= 0
    assert got == (1 << 63, Piece(), [b"data"])
    assert fetched(guest, host, b"data") == b"data"


def _frames(kind, body, buffers=()):
    """A message's frames as they come."""
    endpoint = f"inproc://{secrets.token_hex(8)}"
    context = process_context()
    with context.socket(zmq.PAIR) as near, context.socket(zmq.PAIR) as far:
        near.bind(endpoint)
        far.connect(endpoint)
        _core.send_message(near, kind, body, buffers, copy=True)
        return far.recv_multipart()


def test_a_frame_longer_than_any_question_ends_its_connection(host, intruder, guest):
    intruder.send(bytes(1 << 20))
    ask(intruder, host.hold(b"data"), 0, 4, number=5)
    assert answer(intruder) == (5, Piece(), [b"data"])  # on the next connection
    assert fetched(guest, host, b"more") == b"more"


def test_who_asks_and_does_not_read_costs_no_memory(host, intruder, guest):
    descriptor = host.hold(bytes(64 * CHUNK_NBYTES))
    before_nbytes = psutil.Process().memory_info().rss
    most_lent = 0
    for i in range(10_000):
        while not _asked(intruder, descriptor, (i % 64) * CHUNK_NBYTES):
            intruder.poll(1000, zmq.POLLOUT)
        most_lent = max(most_lent, _core.lent_buffers())
    assert settled(lambda: host.n_reads == 10_000)
    most_lent = max(most_lent, _core.lent_buffers())
    assert WINDOW < most_lent <= ANSWERS_HWM + 8
    assert psutil.Process().memory_info().rss - before_nbytes < 100 << 20
    data = os.urandom(20 * CHUNK_NBYTES)
    assert fetched(guest, host, data) == data
    intruder.close()
    assert settled(lambda: _core.lent_buffers() == 0)


def _asked(socket, descriptor, offset):
    kind, body = DATA_MESSAGES.encode(Ask(descriptor, offset, CHUNK_NBYTES))
    return _core.send_message(socket, kind, body)


# ---- a host that makes no sense -------------------------------------------------------------


@contextlib.contextmanager
def played_host(folder, play):
    """A host played by a function of each question, its number and the ROUTER's way to answer."""
    stopped = threading.Event()
    router = process_context().socket(zmq.ROUTER)
    router.linger = 0
    router.rcvtimeo = 20
    router.bind(f"ipc://{folder}/played")

    def run():
        while not stopped.is_set():
            received = _core.recv(router, routed=True, wait=True)
            if received is None:
                continue

            def reply(message, number, *buffers, route=received.routing_id):
                kind, body = DATA_MESSAGES.encode(message)
                _core.send_message(
                    router, kind, body, buffers, request_id=number, routing_id=route, copy=True
                )

            asked = DATA_MESSAGES.decode(received.kind, received.body)
            play(asked, received.request_id, reply)
        router.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield DataPeer(f"ipc://{folder}/played")
    finally:
        stopped.set()
        thread.join()


@pytest.fixture
def wanted():
    data = random.Random(7).randbytes(20 * CHUNK_NBYTES + 5)
    return Descriptor(secrets.token_bytes(16), 1, 0, len(data)), data


def test_questions_that_were_dropped_are_asked_again(short_folder, guest, wanted):
    descriptor, data = wanted
    counts = {}

    def play(asked, number, reply):
        counts[number] = counts.get(number, 0) + 1
        # The third is overtaken by the others; the last window has nothing that overtakes it.
        if counts[number] == 1 and (number == 3 or number > 5):
            return
        reply(Piece(), number, data[asked.offset : asked.offset + asked.nbytes])

    with played_host(short_folder, play) as peer:
        guest.fetch(descriptor, peer)
        assert guest.get(descriptor) == [data]
    assert set(counts) == set(range(1, 22))
    assert max(counts.values()) <= 3


def test_answers_that_come_twice_or_late_or_unasked_are_ignored(short_folder, guest, wanted):
    descriptor, data = wanted
    late = []

    def play(asked, number, reply):
        piece = data[asked.offset : asked.offset + asked.nbytes]
        reply(Piece(), number, piece)
        reply(Piece(), number, bytes(len(piece)))
        reply(Missing(), number)
        reply(Piece(), number + 1000, piece)
        reply(Ask(asked.descriptor, 0, 1), 1 << 60)
        late.append((number, len(piece)))
        for earlier, nbytes in late[:-WINDOW]:
            reply(Piece(), earlier, bytes(nbytes))

    with played_host(short_folder, play) as peer:
        guest.fetch(descriptor, peer)
        assert guest.get(descriptor) == [data]


@pytest.mark.parametrize(
    "buffers", [[], [b""], [bytes(CHUNK_NBYTES - 1)], [bytes(CHUNK_NBYTES + 1)], [b"a", b"b"]]
)
def test_a_piece_of_another_size_ends_its_fetch(short_folder, guest, wanted, buffers):
    def play(_, number, reply):
        reply(Piece(), number, *buffers)

    with played_host(short_folder, play) as peer:
        guest.fetch(wanted[0], peer)
        error = guest.get(wanted[0])[0]
    assert isinstance(error, ProtocolError)
    assert "what was not asked for" in str(error)


def test_a_host_that_says_nothing_is_given_up(short_folder, wanted, start_guest):
    guest = start_guest(patience_s=0.5)
    with played_host(short_folder, lambda *_: None) as peer:
        guest.fetch(wanted[0], peer)
        error = guest.get(wanted[0])[0]
        assert isinstance(error, TransportError)
        assert error.message == f"{peer.endpoint}, which has data for us, sent nothing for 0.5 s"
        assert guest.client.next_turn == float("inf")
        assert guest.n_turns < 10


# ---- lines that are cut ---------------------------------------------------------------------


def test_a_cut_costs_what_was_under_way(tcp_host, proxy, guest):
    data = random.Random(8).randbytes(40 * CHUNK_NBYTES + 3)
    for n_cuts, nbytes in enumerate((7_654_321, 20_000_000, 100), 1):
        proxy.cut_after(nbytes)
        assert fetched(guest, tcp_host, data, proxy.peer) == data
        assert proxy.n_connections == n_cuts + 1
        assert tcp_host.n_reads <= n_cuts * (41 + 2 * WINDOW)


def test_cuts_again_and_again(tcp_host, proxy, guest):
    data = random.Random(9).randbytes(30 * CHUNK_NBYTES)
    descriptor = tcp_host.hold(data)
    guest.fetch(descriptor, proxy.peer)
    for n in range(1, 6):
        proxy.cut_after(5 << 20)
        guest.turn_until(lambda n=n: proxy.n_connections > n or descriptor in guest.outcomes)
    assert guest.get(descriptor) == [data]


def test_a_line_that_swallows_for_a_while(tcp_host, proxy, guest):
    data = random.Random(10).randbytes(40 * CHUNK_NBYTES)
    descriptor = tcp_host.hold(data)
    proxy.pause_s = 0.001
    guest.fetch(descriptor, proxy.peer)
    guest.turn_until(lambda: tcp_host.n_reads > 5)
    proxy.swallows = True
    healed = threading.Timer(3.0, setattr, (proxy, "swallows", False))
    healed.start()
    assert guest.get(descriptor) == [data]
    healed.join()


def test_a_line_that_swallows_for_good(tcp_host, proxy, start_guest):
    guest = start_guest(patience_s=1.0)
    descriptors = [tcp_host.hold(bytes(40 * CHUNK_NBYTES)) for _ in range(3)]
    proxy.pause_s = 0.001
    for descriptor in descriptors:
        guest.fetch(descriptor, proxy.peer)
    guest.turn_until(lambda: tcp_host.n_reads > 5)
    proxy.swallows = True
    began = time.monotonic()
    for error in guest.get(*descriptors):
        assert isinstance(error, TransportError)
        assert f"{proxy.endpoint}, which has data for us, sent nothing for 1 s" in str(error)
    assert time.monotonic() - began < 4.0
    proxy.swallows = False
    assert fetched(guest, tcp_host, b"data", proxy.peer) == b"data"


@pytest.mark.long
def test_a_slow_line_is_not_made_slower(tcp_host, proxy, guest):
    proxy.pause_s = 0.2  # 64 KiB, so that a piece takes longer than it takes to ask again
    data = random.Random(12).randbytes(5 * CHUNK_NBYTES)
    assert fetched(guest, tcp_host, data, proxy.peer) == data
    assert tcp_host.n_reads <= 2 * 5


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_host_that_is_gone(scheme, start_host, start_guest):
    guest = start_guest(patience_s=1.0)
    host = start_host(scheme)
    assert fetched(guest, host, b"data") == b"data"
    descriptor = host.hold(bytes(400 * CHUNK_NBYTES))
    guest.fetch(descriptor, host.peer)
    guest.turn_until(lambda: host.n_reads > 5)
    host.close()
    began, n_turns = time.monotonic(), guest.n_turns
    error = guest.get(descriptor)[0]
    assert isinstance(error, TransportError)
    assert not isinstance(error, HandshakeError)
    assert error.message == f"{host.peer.endpoint}, which has data for us, did not answer for 1 s"
    assert 0.9 < time.monotonic() - began < 4.0
    assert guest.n_turns - n_turns < 200


# ---- nothing is left ------------------------------------------------------------------------


def n_open():
    """Descriptors of this process, but for those of the arena, which keeps memory for later."""
    return sum(1 for fd in os.listdir("/proc/self/fd") if not _is_memory(f"/proc/self/fd/{fd}"))


def _is_memory(link):
    try:
        return "memfd:" in os.readlink(link)
    except OSError:  # that of the list itself
        return True


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_nothing_is_left_of_a_thousand_fetches(scheme, start_host, start_guest):
    host, guest = start_host(scheme), start_guest()
    data = os.urandom(CHUNK_NBYTES + 1)
    descriptor = host.hold(data)
    gc.collect()
    blocks, fds = arena.statistics().n_blocks, n_open()
    for _ in range(1000):
        guest.fetch(descriptor, host.peer)
        assert guest.get(descriptor) == [data]
    assert settled(lambda: arena.statistics().n_blocks <= blocks)
    assert settled(lambda: _core.lent_buffers() == 0)
    guest.close()
    assert settled(lambda: n_open() <= fds)
    host.close()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_nothing_is_left_of_hosts_that_come_and_go(scheme, start_host, start_guest):
    guest = start_guest()
    assert fetched(guest, start_host(scheme), b"data") == b"data"
    fds = n_open()
    for _ in range(5):
        host = start_host(scheme)
        assert fetched(guest, host, b"data") == b"data"
        host.close()
        guest.turn_until(lambda host=host: host.peer not in guest.client._links)
    assert settled(lambda: n_open() <= fds)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_nothing_is_left_of_what_was_cancelled_before_its_host_was_there(
    scheme, start_host, start_guest
):
    guest, host = start_guest(), start_host(scheme)
    assert fetched(guest, host, b"data") == b"data"
    descriptor = host.hold(b"data")
    host.close()
    guest.turn_until(lambda: host.peer not in guest.client._links)
    fds = n_open()
    guest.fetch(descriptor, host.peer)
    guest.turn_until(lambda: len(guest._poller.sockets) > 1)  # it tries to connect
    guest.client.cancel(descriptor)
    guest.turn_until(lambda: host.peer not in guest.client._links, 5.0)
    assert len(guest._poller.sockets) == 1  # its waker
    assert settled(lambda: n_open() <= fds)
    assert guest.outcomes == {}


def test_too_many_open_files_end_a_fetch_and_not_the_process(tcp_host, start_guest):
    guest = start_guest()
    descriptor = tcp_host.hold(b"data")
    fds, taken = n_open(), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(3):  # no socket can be had, or one, or two
            guest.fetch(descriptor, tcp_host.peer)
            (error,) = guest.get(descriptor)
            assert isinstance(error, TransportError)
            assert error.errno == errno.EMFILE
            os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert fetched(guest, tcp_host, b"data") == b"data"
    guest.close()
    assert settled(lambda: n_open() <= fds)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_nothing_is_left_when_it_is_closed_in_the_middle(scheme, start_host, start_guest):
    start_host(scheme).close()
    gc.collect()
    blocks, fds, threads = arena.statistics().n_blocks, n_open(), threading.active_count()
    data = bytes(40 * CHUNK_NBYTES)
    for n_reads in range(10):
        host, guest = start_host(scheme), start_guest()
        for _ in range(3):
            guest.fetch(host.hold(data), host.peer)
        guest.turn_until(lambda host=host, n=n_reads: host.n_reads > n)
        guest.close()
        host.close()
        assert guest.outcomes == {}
        assert len(guest._poller.sockets) == 1  # its waker
    assert settled(lambda: arena.statistics().n_blocks <= blocks)
    assert settled(lambda: _core.lent_buffers() == 0)
    assert settled(lambda: n_open() <= fds)
    assert settled(lambda: threading.active_count() <= threads)
