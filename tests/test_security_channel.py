"""Channels over tcp with keys; and that nothing of a stranger reaches what unpickles."""

from __future__ import annotations

import os
import pickle
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import zmq

from security_peers import GREETING, HELLO, Peer, Records, mutate
from zfast import Channel
from zfast.context import process_context
from zfast.errors import ChannelClosedError, HandshakeError, RecvTimeoutError, TransportError
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair
from zfast.security.limits import Limits
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

SERVER = KeyPair.generate("server")
DEVELOPER = KeyPair.generate("developer")
VIEWER = KeyPair.generate("viewer")
STRANGER = KeyPair.generate("stranger")
#: Frames that are not ours, against a listening socket. More in the soak.
N_MUTATED = int(os.environ.get("ZFAST_FUZZ_FRAMES", "10000"))

_unpickled: list[tuple[object, ...]] = []
_is_watching = threading.Event()


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "pickle.find_class" and _is_watching.is_set():
        _unpickled.append(arguments)


sys.addaudithook(_watch)


@pytest.fixture
def unpickled():
    """What was looked up to unpickle, in the whole process, while the test runs."""
    _unpickled.clear()
    _is_watching.set()
    yield _unpickled
    _is_watching.clear()


def bind(**options) -> Channel:
    clients = [(DEVELOPER.public, Role.DEVELOPER), (VIEWER.public, Role.VIEWER)]
    security = ServerSecurity.from_keys(SERVER, clients, limits=Limits(**options))
    return Channel.bind("tcp://127.0.0.1:*", security=security)


def connect(rx: Channel, pair: KeyPair = DEVELOPER) -> Channel:
    return Channel.connect(rx.endpoint, security=ClientSecurity(pair, [SERVER.public]))


@pytest.mark.parametrize("nbytes", [10, 100_000, 5_000_000, 40_000_000])
def test_values_of_every_size_come_through(nbytes):
    value = {"x": np.arange(nbytes // 8), "n": nbytes}
    with bind() as rx, connect(rx) as tx:
        sender = threading.Thread(target=tx.send, args=(value,))
        sender.start()
        received = rx.recv(timeout=60)
        sender.join()
        assert received["n"] == nbytes
        np.testing.assert_array_equal(received["x"], value["x"])
        rx.send("thanks")
        assert tx.recv(timeout=30) == "thanks"


def test_a_channel_ends_when_its_key_is_revoked():
    security = ServerSecurity.from_keys(SERVER, [(DEVELOPER.public, Role.DEVELOPER)])
    with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
        tx = connect(rx)
        tx.send(1, timeout=20)
        assert rx.recv(timeout=20) == 1
        security.revoke(DEVELOPER.public)
        with pytest.raises((ChannelClosedError, HandshakeError)):
            tx.recv(timeout=20)
        tx.abort()


def poison(marker: str) -> bytes:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (marker,)

    return pickle.dumps(Evil())


@pytest.mark.parametrize("who", ["stranger", "viewer", "null"])
def test_nothing_of_a_peer_without_key_or_role_is_unpickled(who, tmp_path, unpickled):
    marker = str(tmp_path / "pwned")
    with Records() as records, bind() as rx:
        if who == "null":
            peer = process_context().socket(zmq.DEALER)
            peer.linger = 0
            peer.connect(rx.endpoint)
            peer.send(poison(marker))
            records.wait_for("refused", "not CURVE")
            peer.close(0)
        else:
            pair, reason = {
                "stranger": (STRANGER, "unknown key"),
                "viewer": (VIEWER, "role has no business here"),
            }[who]
            with Peer(rx.endpoint, pair, SERVER.public) as peer:
                peer.socket.send(poison(marker))
                records.wait_for("refused", reason)
        with pytest.raises(RecvTimeoutError):
            rx.recv(timeout=0.2)
        assert unpickled == []
        assert not os.path.exists(marker)
        # The hook works: a peer that has key and role is unpickled.
        with connect(rx) as tx:
            tx.send(ValueError("x"), timeout=20)
            assert isinstance(rx.recv(timeout=20), ValueError)
        assert unpickled


# ---- frames that are not ours ----------------------------------------------------------------


def test_mutated_handshakes_do_no_harm(unpickled):
    """Raw frames, as a stranger sends them: no crash, no hang, nothing unpickled, memory flat."""
    rng = random.Random(20261125)
    with bind(handshake_ms=1000) as rx, connect(rx) as tx:
        port = int(rx.endpoint.rpartition(":")[2])
        tx.send(0, timeout=20)
        assert rx.recv(timeout=20) == 0
        process = psutil.Process()
        rss = 0
        sent = 0
        while sent < N_MUTATED:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
                try:
                    # One a connection: libzmq ends it at the first that is wrong.
                    sent += 1
                    stranger.sendall(GREETING if rng.random() < 0.8 else mutate(rng, GREETING))
                    stranger.sendall(mutate(rng, HELLO))
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
                except OSError:
                    pass
            if sent >= N_MUTATED // 5 and not rss:
                rss = process.memory_info().rss
        tx.send(1, timeout=30)
        assert rx.recv(timeout=30) == 1
        with connect(rx) as another:
            another.send(2, timeout=30)
            assert rx.recv(timeout=30) == 2
        assert unpickled == []
        assert process.memory_info().rss - rss < 64 << 20


# ---- promises 2 and 3: what strangers cost ----------------------------------------------------

_SERVER_PROCESS = """
import sys
from zfast import Channel
from zfast.errors import RecvTimeoutError
from zfast.security.curve_keys import KeyPair, PublicKey
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity
secret, public = sys.argv[1:]
security = ServerSecurity.from_keys(secret, [(PublicKey(public, "dev"), Role.DEVELOPER)])
with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
    print(rx.endpoint, flush=True)
    while True:
        try:
            rx.recv(timeout=3600)
        except Exception as error:
            print(error, file=sys.stderr)
"""


@pytest.fixture
def server():
    """A server in a process of its own, whose memory is its own too: it and its endpoint."""
    secret = SERVER.secret.reveal().decode()
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER_PROCESS, secret, DEVELOPER.public.z85],
        # One heap for all threads: of others' glibc never gives the top back, some MiB, whatever
        # it is told; this is about what strangers keep.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def speak(endpoint: str) -> None:
    """Be a good client; closing waits until the server has read what it was sent."""
    security = ClientSecurity(DEVELOPER, [SERVER.public])
    with Channel.connect(endpoint, security=security) as tx:
        tx.send("hello", timeout=30)


def test_a_hundred_strangers_with_garbage_and_huge_frames_cost_little_memory(server):
    process, endpoint = server
    port = int(endpoint.rpartition(":")[2])
    speak(endpoint)
    rss = psutil.Process(process.pid).memory_info
    before = rss().rss
    huge = b"\x06" + struct.pack(">Q", 1 << 30)  # a command of 1 GiB
    just_allowed = b"\x06" + struct.pack(">Q", 4 << 20)
    strangers, peak = [], before
    for number in range(100):
        stranger = socket.create_connection(("127.0.0.1", port))
        stranger.settimeout(5)
        strangers.append(stranger)
        try:
            stranger.sendall(GREETING)
            if number % 3 == 0:
                stranger.sendall(os.urandom(4096))
            else:
                stranger.sendall(huge if number % 3 == 1 else just_allowed)
                stranger.sendall(os.urandom(3 << 20))
        except OSError:
            pass
        peak = max(peak, rss().rss)
    assert peak - before < 100 * (4 << 20) + (64 << 20)
    for stranger in strangers:
        stranger.close()
    deadline_s = time.monotonic() + 15
    while rss().rss > before * 1.1 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert rss().rss <= before * 1.1
    speak(endpoint)


@pytest.fixture
def many_descriptors():
    """As many open files as this process may have: some systems begin with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_silent_strangers_do_not_keep_a_good_client_out(server):
    _, endpoint = server
    port = int(endpoint.rpartition(":")[2])
    speak(endpoint)
    silent = []
    try:
        silent.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(1000))
        # Within libzmq's own patience, when they would all still be there without the limit.
        speak(endpoint)
        # And none of them is left in the end.
        for stranger in silent:
            stranger.settimeout(20)
            try:
                while stranger.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    finally:
        for stranger in silent:
            stranger.close()
    speak(endpoint)


# ---- the boundary of ipc ---------------------------------------------------------------------


def test_another_user_does_not_come_in_over_ipc(short_folder):
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    path = short_folder / "s.sock"
    with Channel.bind(f"ipc://{path}") as rx:
        path.chmod(0o777)
        script = (
            "import os, socket, sys; os.setuid(65534)\n"
            f"s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect({str(path)!r})\n"
            "sys.exit(0 if s.recv(64) == b'' else 1)"
        )
        done = subprocess.run([sys.executable, "-S", "-c", script], timeout=30, check=False)
        assert done.returncode == 0
        with Channel.connect(f"ipc://{path}") as tx:
            tx.send(1, timeout=20)
            assert rx.recv(timeout=20) == 1
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        os.chown(path, 65534, 65534)
        with pytest.raises(TransportError, match="belongs to user 65534"):
            Channel.connect(f"ipc://{path}")


_IMPOSTOR = """
import os, socket, sys
os.setuid(65534)
address = sys.argv[1]
s = socket.socket(socket.AF_UNIX)
s.bind("\\0" + address[1:] if address[0] == "@" else address)
if address[0] != "@":
    os.chmod(address, 0o777)
s.listen()
print("listens", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_nobody_connects_to_a_socket_that_another_user_put_there_first(kind, short_folder):
    """As in /tmp: who waits for a server there would unpickle what the first comer sends."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    short_folder.chmod(0o1777)
    address = f"@zfast-{os.urandom(8).hex()}" if kind == "abstract" else f"{short_folder}/s.sock"
    with pytest.raises(TransportError, match="another user could"):
        Channel.connect(f"ipc://{address}")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _IMPOSTOR, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as impostor:
        assert impostor.stdout.readline() == "listens\n"
        with pytest.raises(TransportError, match="belongs to user 65534"):
            Channel.connect(f"ipc://{address}")
        impostor.stdin.close()
    if kind == "path":
        os.unlink(address)
    with Channel.bind(f"ipc://{address}") as rx, Channel.connect(f"ipc://{address}") as tx:
        tx.send(1, timeout=20)
        assert rx.recv(timeout=20) == 1
