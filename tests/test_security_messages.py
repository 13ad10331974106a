"""Each message is judged by the key of the connection that it came over, and by nothing in it."""

from __future__ import annotations

import pickle
import threading
import time

import numpy as np
import pytest
import zmq

from security_peers import Peer, Records
from zfast import Channel, _core
from zfast.context import process_context
from zfast.errors import RecvTimeoutError, ZfastError
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair
from zfast.security.policy import Policy, Rule
from zfast.security.roles import Role
from zfast.security.routing_ids import MAX_IDS, RoutingIds
from zfast.security.server_security import ServerSecurity
from zfast.security.sources import ServerState
from zfast.transport.peer import Kind

SERVER = KeyPair.generate("server")
DEVELOPER = KeyPair.generate("developer")
OWNER = KeyPair.generate("owner")
CLIENTS = [(DEVELOPER.public, Role.DEVELOPER), (OWNER.public, Role.OWNER)]


@pytest.fixture
def uncut(monkeypatch):
    """Connections stay, so that only the look at each message is left."""
    monkeypatch.setattr("zfast.security.connections.Connection.cut", lambda _: True)


def connect(rx: Channel, pair: KeyPair) -> Channel:
    return Channel.connect(rx.endpoint, security=ClientSecurity(pair, [SERVER.public]))


def say(tx: Channel, what: str) -> None:
    """Send it as far as it goes: nobody takes it."""
    try:
        if what == "batch":
            tx.send_many([b"one", b"two"], timeout=2)
        elif what == "value":
            tx.send({"x": 1}, timeout=2)
        elif what == "object":
            tx.send(ValueError("x"), timeout=2)
        else:
            tx.send(np.zeros(3_000_000), timeout=2)
    except ZfastError:
        pass


@pytest.mark.parametrize("what", ["value", "object", "batch", "stream"])
def test_nothing_that_a_revoked_key_says_is_handed_over(what, uncut):
    security = ServerSecurity.from_keys(SERVER, CLIENTS)
    with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
        tx, good = connect(rx, DEVELOPER), connect(rx, OWNER)
        tx.send(0, timeout=20)
        assert rx.recv(timeout=20) == 0
        say(tx, what)  # said before it was revoked, and read after
        with Records() as records:
            security.revoke(DEVELOPER.public)
            say(tx, what)
            with pytest.raises(RecvTimeoutError):
                rx.recv(timeout=0.5)
            with pytest.raises(RecvTimeoutError):
                rx.recv_many(timeout=0.1)
            denied = records.wait_for("denied", "may not put")
            assert denied["key"] == DEVELOPER.public.fingerprint
        good.send("still here", timeout=20)
        assert rx.recv(timeout=20) == "still here"
        tx.abort()
        good.abort()
        rx.abort()


def test_a_stream_that_has_begun_ends_with_its_key(uncut):
    security = ServerSecurity.from_keys(SERVER, CLIENTS)
    with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
        tx = connect(rx, DEVELOPER)

        def send():
            with pytest.raises(ZfastError):
                tx.send(np.zeros(8_000_000), timeout=3)

        sender = threading.Thread(target=send)
        sender.start()
        deadline_s = time.monotonic() + 20
        while not any(peer.incoming.active for peer in rx._link.peers.values()):
            assert time.monotonic() < deadline_s
            with pytest.raises(RecvTimeoutError):
                rx.recv(timeout=0)
        security.revoke(DEVELOPER.public)
        with pytest.raises(RecvTimeoutError):
            rx.recv(timeout=0.5)
        sender.join()
        tx.abort()
        rx.abort()


class Folder:
    """A policy that a test changes, as a file would."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self.version = 0

    def load(self) -> ServerState:
        names = {key.z85: key.name for key, _ in CLIENTS}
        forever = ((SERVER, float("inf")),)
        return ServerState(forever, names, frozenset(), Policy(rules=self.rules))

    def load_revoked(self) -> frozenset[str]:
        return frozenset()

    def signature(self) -> tuple[object, ...]:
        return (self.version,)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(Role.VIEWER, ("staging",), key="developer"),
        Rule(Role.RUNNER, ("staging",), key="developer"),
        Rule(Role.OWNER, ("prod",), key="developer"),  # nothing here
    ],
)
def test_a_role_that_lacks_the_verb_is_refused_each_message(rule, uncut):
    folder = Folder(
        Rule(Role.DEVELOPER, ("staging",), key="developer"), Rule(Role.OWNER, ("*",), key="owner")
    )
    security = ServerSecurity("staging", folder)
    with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
        tx, good = connect(rx, DEVELOPER), connect(rx, OWNER)
        tx.send("as a developer", timeout=20)
        assert rx.recv(timeout=20) == "as a developer"
        folder.rules, folder.version = (rule, folder.rules[1]), 1
        with Records() as records:
            security.reload()
            for _ in range(3):
                tx.send("no more", timeout=2)
            with pytest.raises(RecvTimeoutError):
                rx.recv(timeout=0.5)
            assert sum(text.startswith("denied") for text in records.texts) >= 3
        good.send("mine", timeout=20)
        assert rx.recv(timeout=20) == "mine"
        tx.abort()
        good.abort()
        rx.abort()
    security.close()


def test_a_name_that_a_peer_gives_itself_means_nothing():
    """Neither the routing id of another, nor a body that says whose it is."""
    security = ServerSecurity.from_keys(SERVER, CLIENTS)
    with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
        with Peer(rx.endpoint, OWNER, SERVER.public, routing_id=b"owner") as peer:
            _core.send_message(peer.socket, Kind.VALUE, pickle.dumps("mine", 5))
            assert rx.recv(timeout=20) == "mine"
        claim = pickle.dumps({"subject": "owner", "User-Id": OWNER.public.z85, "role": "Owner"}, 5)
        with Records() as records:
            deadline_s = time.monotonic() + 20
            while not any("routing id of another key" in text for text in records.texts):
                # The id is free for libzmq once the owner's connection has ended.
                assert time.monotonic() < deadline_s
                with Peer(rx.endpoint, DEVELOPER, SERVER.public, routing_id=b"owner") as squatter:
                    assert squatter.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                    _core.send_message(squatter.socket, Kind.VALUE, claim)
                    with pytest.raises(RecvTimeoutError):
                        rx.recv(timeout=0.3)
        rx.abort()


def test_routing_ids_of_long_ago_are_forgotten():
    ids = RoutingIds()
    for number in range(MAX_IDS + 10):
        ids.check(b"%d" % number, "key")
    assert len(ids._owners) <= MAX_IDS + 1


# ---- the core -------------------------------------------------------------------------------


def receive(socket, admits):
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        message = _core.recv(socket, routed=True, admits=admits)
        if message is not None:
            return message
        _core.poll(socket, _core.POLLIN, 0.1)
    raise AssertionError("nothing came")


def test_a_message_that_is_not_admitted_is_taken_off_whole():
    router, dealer = process_context().socket(zmq.ROUTER), process_context().socket(zmq.DEALER)
    router.linger = dealer.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.connect(f"tcp://127.0.0.1:{port}")
    asked = []

    def admits(routing_id, user_id, source_fd, token):
        assert token is None
        asked.append((routing_id, user_id, source_fd))
        if len(asked) == 2:
            raise RuntimeError("a judge that fails")
        return len(asked) > 2

    try:
        for number in range(3):
            large = np.full(100_000, number, dtype=np.uint8)
            _core.send_message(dealer, Kind.VALUE, b"%d" % number, [large, large])
        with pytest.raises(RuntimeError, match="a judge that fails"):
            receive(router, admits)
        message = receive(router, admits)
        assert bytes(message.body) == b"2"
        assert [len(buffer) for buffer in message.buffers] == [100_000, 100_000]
        # Without a ZAP handler nobody has a name; the connection has its descriptor.
        assert {user_id for _, user_id, _ in asked} == {""}
        assert all(fd > 0 for _, _, fd in asked)
        assert {routing_id for routing_id, _, _ in asked} == {message.routing_id}
    finally:
        dealer.close(0)
        router.close(0)
