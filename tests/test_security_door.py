"""A guarded socket, from outside: who gets in, what each may do, and when it ends."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time

import pytest
import zmq

from security_peers import ALL_VERBS, Peer, Records, serving, wait_until
from zfast import Channel
from zfast.addresses import InsecureEndpointWarning
from zfast.context import process_context
from zfast.errors import ConfigError, HandshakeError, TransportError
from zfast.security.audit import counters
from zfast.security.client_security import ClientSecurity, find_server_key
from zfast.security.curve_keys import KeyPair
from zfast.security.gate import process_gate
from zfast.security.key_folder import KeyFolder
from zfast.security.limits import Limits
from zfast.security.policy import Policy, Rule
from zfast.security.roles import Role, Verb
from zfast.security.server_security import ServerSecurity
from zfast.security.sources import ServerState

SERVER = KeyPair.generate("server")
WORKER = KeyPair.generate("worker")
VIEWER = KeyPair.generate("viewer")
DEVELOPER = KeyPair.generate("developer")
STRANGER = KeyPair.generate("stranger")
CLIENTS = [
    (WORKER.public, Role.WORKER),
    (VIEWER.public, Role.VIEWER),
    (DEVELOPER.public, Role.DEVELOPER),
]
FOREVER = float("inf")


def security(**options) -> ServerSecurity:
    return ServerSecurity.from_keys(SERVER, CLIENTS, **options)


class ChangingSource:
    """A state that a test changes, as a file would."""

    def __init__(self, pairs, *, environment="default"):
        self._version = 0
        self.authorized = {key.z85: key.name for key, _ in CLIENTS}
        self.revoked = frozenset()
        self.pairs = pairs
        self.rules = tuple(Rule(role, (environment,), key=key.name) for key, role in CLIENTS)

    def load(self):
        return ServerState(
            tuple(self.pairs), self.authorized, self.revoked, Policy(rules=self.rules)
        )

    def load_revoked(self):
        return self.revoked

    def signature(self):
        return (self._version,)

    def change(self, **values):
        for name, value in values.items():
            setattr(self, name, value)
        self._version += 1


def say_if_connected(peer):
    """Not waiting: a socket that was refused and does not try again has nobody to send to."""
    with contextlib.suppress(zmq.Again):
        peer.send(b"claim", zmq.DONTWAIT)


# ---- promise 1: nothing is bound unguarded ----------------------------------------------


def test_tcp_without_keys_is_refused_with_the_command_that_makes_them():
    with pytest.raises(ConfigError, match="zfast keys new server"):
        Channel.bind("tcp://127.0.0.1:*")
    with pytest.raises(ConfigError, match="zfast keys new server"):
        Channel.bind("tcp://0.0.0.0:*", insecure=True)
    with pytest.raises(ConfigError, match="not both"):
        Channel.bind("tcp://127.0.0.1:*", insecure=True, security=security())
    with pytest.raises(ConfigError, match="binding takes a ServerSecurity"):
        Channel.bind("tcp://127.0.0.1:*", security=ClientSecurity(WORKER, [SERVER.public]))
    with pytest.warns(InsecureEndpointWarning), Channel.bind("tcp://127.0.0.1:*", insecure=True):
        pass


def test_a_guarded_socket_enforces_a_zap_domain_and_curve():
    with serving(security()) as service:
        assert service.socket.mechanism == zmq.CURVE
        assert service.socket.get_string(zmq.ZAP_DOMAIN).rstrip("\0")
        assert service.socket.get(zmq.ZAP_ENFORCE_DOMAIN) == 1
        assert 0 < service.socket.maxmsgsize <= 4 << 20
        assert 0 < service.socket.handshake_ivl <= 3000


@pytest.mark.parametrize("option", ["zap_enforce_domain", "curve_server", "maxmsgsize"])
def test_a_socket_whose_options_were_changed_is_not_bound(option):
    guarded = process_context().socket(zmq.ROUTER)
    door = security().guard(guarded, verbs=[Verb.PUT])
    setattr(guarded, option, {"zap_enforce_domain": 0, "curve_server": 0, "maxmsgsize": -1}[option])
    try:
        if option == "curve_server":  # set anew for each listener
            door.bind("tcp://127.0.0.1:*")
            assert guarded.mechanism == zmq.CURVE
        else:
            with pytest.raises(TransportError, match="is not guarded"):
                door.bind("tcp://127.0.0.1:*")
    finally:
        door.close()
        guarded.close(0)


def test_nothing_is_bound_when_the_zap_handler_does_not_answer(monkeypatch):
    gate = process_gate()
    monkeypatch.setattr("zfast.security.gate.SELF_TEST_S", 0.2)
    monkeypatch.setattr(gate, "_answer", lambda handler: handler.recv_multipart(zmq.DONTWAIT))
    guarded = process_context().socket(zmq.ROUTER)
    with pytest.raises(TransportError, match="did not answer its self-test"):
        security().guard(guarded, verbs=[Verb.PUT])
    guarded.close(0)


def test_nothing_is_bound_when_the_handler_lets_strangers_in(monkeypatch):
    from zfast.security.doorkeeper import Doorkeeper

    monkeypatch.setattr(Doorkeeper, "_judge", lambda *_, **__: (None, ""))
    guarded = process_context().socket(zmq.ROUTER)
    with pytest.raises(TransportError, match="failed its self-test"):
        security().guard(guarded, verbs=[Verb.PUT])
    guarded.close(0)


def test_a_port_in_use_is_refused_even_by_the_same_user():
    with serving(security()) as service:
        guarded = process_context().socket(zmq.ROUTER)
        door = security().guard(guarded, verbs=[Verb.PUT])
        with pytest.raises(TransportError, match="in use"):
            door.bind(service.endpoint)
        door.close()
        guarded.close(0)


# ---- promise 6: strangers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "server", "reason"),
    [
        (STRANGER, SERVER, "unknown key"),
        (WORKER, STRANGER, "wrong server key"),
    ],
)
def test_a_stranger_is_refused_with_one_record_and_a_count(pair, server, reason):
    before = counters().get(("refused", reason), 0)
    with Records() as records, serving(security()) as service:
        with Peer(service.endpoint, pair, server.public, reconnect_ivl=-1) as peer:
            say_if_connected(peer.socket)
            record = records.wait_for("refused", reason)
            if pair is STRANGER:
                assert record["mechanism"] == "CURVE"
                assert record["address"] == "127.0.0.1"
                assert record["key"] == STRANGER.public.fingerprint
        assert service.heard == []
        refusals = [text for text in records.texts if text.startswith("refused")]
        assert len(refusals) == 1
    assert counters()["refused", reason] == before + 1


@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN"])
def test_a_peer_without_curve_is_refused(mechanism):
    with Records() as records, serving(security()) as service:
        peer = process_context().socket(zmq.DEALER)
        peer.linger = 0
        peer.reconnect_ivl = -1
        if mechanism == "PLAIN":
            peer.plain_username, peer.plain_password = b"u", b"a-password"
        peer.connect(service.endpoint)
        say_if_connected(peer)
        records.wait_for("refused", "not CURVE")
        peer.close(0)
        assert service.heard == []
        assert not any("a-password" in text for text in records.texts)


def test_a_client_is_told_that_its_key_is_refused():
    with Channel.bind("tcp://127.0.0.1:*", security=security()) as rx:
        tx = Channel.connect(rx.endpoint, security=ClientSecurity(STRANGER, [SERVER.public]))
        with pytest.raises(HandshakeError, match="refused our key") as caught:
            tx.send(1, timeout=20)
        assert STRANGER.public.fingerprint in str(caught.value)
        tx.abort()


def test_a_client_is_told_that_the_server_is_another_one():
    with Channel.bind("tcp://127.0.0.1:*", security=security()) as rx:
        tx = Channel.connect(rx.endpoint, security=ClientSecurity(WORKER, [STRANGER.public]))
        with pytest.raises(HandshakeError, match="is not the server we trust"):
            tx.send(1, timeout=30)
        tx.abort()


def test_a_key_of_another_environment_is_refused():
    source = ChangingSource([(SERVER, FOREVER)], environment="prod")
    with Records() as records, serving(ServerSecurity("staging", source)) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            records.wait_for("refused", "no role in this environment")


def test_a_role_that_has_no_business_here_is_refused():
    with Records() as records, serving(security(), verbs=[Verb.CLAIM]) as service:
        with Peer(service.endpoint, VIEWER, SERVER.public) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            assert records.wait_for("refused", "role has no business here")["subject"] == "viewer"


# ---- promise 11: verbs -------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
def test_every_verb_of_every_role_over_a_socket(role):
    pair = KeyPair.generate(role.value)
    guard = ServerSecurity.from_keys(SERVER, [(pair.public, role)])
    with serving(guard) as service, Peer(service.endpoint, pair, SERVER.public) as peer:
        for verb in Verb:
            answer = peer.ask(verb.value.encode())
            expected = [b"yes", role.value.encode()] if verb in role.verbs else [b"no"]
            assert answer == expected, verb


def test_a_denial_is_recorded():
    with Records() as records, serving(security()) as service:
        with Peer(service.endpoint, VIEWER, SERVER.public) as peer:
            assert peer.ask(b"admin") == [b"no"]
        record = records.wait_for("denied", "may not admin")
        assert (record["subject"], record["role"]) == ("viewer", "Viewer")


# ---- promise 13: routing ids -------------------------------------------------------------


def test_a_routing_id_stays_with_the_key_that_used_it_first():
    with serving(security()) as service:
        with Peer(service.endpoint, WORKER, SERVER.public, routing_id=b"w") as victim:
            assert victim.ask(b"claim") == [b"yes", b"worker"]
            with Peer(service.endpoint, DEVELOPER, SERVER.public, routing_id=b"w") as squatter:
                assert squatter.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                assert squatter.ask(b"put", timeout_s=0.3) is None  # libzmq ignores it
            assert victim.ask(b"claim") == [b"yes", b"worker"]
        # Gone now, and its id is free for libzmq, but not for us.
        deadline = time.monotonic() + 10
        while True:
            with Peer(service.endpoint, DEVELOPER, SERVER.public, routing_id=b"w") as squatter:
                answer = squatter.ask(b"put", timeout_s=1)
            if answer is not None or time.monotonic() > deadline:
                break
        assert answer == [b"no"]


# ---- promise 7: revocation ---------------------------------------------------------------


def test_a_revoked_key_is_cut_at_once_and_the_others_notice_nothing():
    guard = security()
    with Records() as records, serving(guard) as service:
        with (
            Peer(service.endpoint, WORKER, SERVER.public) as revoked,
            Peer(service.endpoint, DEVELOPER, SERVER.public) as good,
        ):
            assert revoked.ask(b"claim") == [b"yes", b"worker"]
            assert good.ask(b"put") == [b"yes", b"developer"]
            start_s = time.monotonic()
            guard.revoke(WORKER.public)
            assert revoked.wait_for(zmq.EVENT_DISCONNECTED)
            assert time.monotonic() - start_s < 5
            assert revoked.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            assert good.ask(b"put") == [b"yes", b"developer"]
            assert not good.wait_for(zmq.EVENT_DISCONNECTED, timeout_s=0.2)
        records.wait_for("key revoked")
        records.wait_for("cut", "revoked key")
        records.wait_for("refused", "revoked key")


def test_what_a_revoked_peer_says_before_the_cut_is_refused(monkeypatch):
    monkeypatch.setattr("zfast.security.connections.Connection.cut", lambda _: True)
    guard = security()
    with serving(guard) as service, Peer(service.endpoint, WORKER, SERVER.public) as peer:
        assert peer.ask(b"claim") == [b"yes", b"worker"]
        guard.revoke(WORKER.public)
        assert peer.ask(b"claim") == [b"no"]


def test_what_was_revoked_here_stays_revoked_when_files_change():
    source = ChangingSource([(SERVER, FOREVER)])
    guard = ServerSecurity("default", source)
    with serving(guard) as service:
        guard.revoke(WORKER.public)
        source.change()
        guard.reload()
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_a_revocation_counts_though_another_file_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("ZFAST_KEYS", str(tmp_path / "keys"))
    folder = KeyFolder(tmp_path / "keys")
    folder.new("prod", "server")
    pair = folder.new("prod", "client").pair
    folder.authorize(pair.public, "client", Role.WORKER, "prod")
    server = folder.own_keys("prod", "server")[0].pair.public
    with Records() as records, serving(ServerSecurity.load("prod")) as service:
        with Peer(service.endpoint, pair, server) as peer:
            assert peer.ask(b"claim") == [b"yes", b"client"]
            for name in ("authorized", "revoked"):
                (folder.path / name).mkdir(exist_ok=True, mode=0o700)
                (folder.path / name / "broken.pub").write_bytes(b"\xff no key")
            folder.revoke(pair.public, "client")
            records.wait_for("key revoked")
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        records.wait_for("reload failed", "not readable")


@pytest.mark.parametrize("when", ["before it guards", "while it is closed"])
def test_a_key_revoked_while_nobody_looked_does_not_come_in(when, tmp_path):
    folder = KeyFolder(tmp_path / "keys")
    folder.new("prod", "server")
    pair = folder.new("prod", "client").pair
    folder.authorize(pair.public, "client", Role.WORKER, "prod")
    guard = ServerSecurity.load("prod", folder=folder.path)
    if when == "while it is closed":
        with serving(guard) as service, Peer(service.endpoint, pair, guard.public_keys[0]) as peer:
            assert peer.ask(b"claim") == [b"yes", b"client"]
    folder.revoke(pair.public, "client")
    with Records() as records, serving(guard) as service:
        guard.reload()
        assert not service.door.may(pair.public.z85, Verb.CLAIM)
        with Peer(service.endpoint, pair, guard.public_keys[0]) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        records.wait_for("key revoked")


def test_a_revocation_that_could_not_be_read_once_counts_soon_afterwards():
    source = ChangingSource([(SERVER, FOREVER)])
    with Records() as records, serving(ServerSecurity("default", source)) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker"]
            load, failures = source.load, [OSError(errno.EMFILE, "Too many open files")] * 2

            def load_later() -> ServerState:
                if failures:
                    raise ConfigError("cannot read it") from failures.pop()
                return load()

            source.load, source.load_revoked = load_later, frozenset
            source.change(revoked=frozenset({WORKER.public.z85}))
            records.wait_for("key revoked")
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        assert sum(text.startswith("reload failed") for text in records.texts) == 1


def test_a_revoked_subscriber_is_cut_too():
    guard = security()
    publisher = process_context().socket(zmq.XPUB)
    publisher.linger = 0
    door = guard.guard(publisher, verbs=[Verb.SUBSCRIBE])
    endpoint = door.bind("tcp://127.0.0.1:*")
    subscriber = process_context().socket(zmq.SUB)
    ClientSecurity(VIEWER, [SERVER.public])._set_options(subscriber, SERVER.public)
    monitor = subscriber.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    subscriber.subscribe(b"")
    subscriber.connect(endpoint)
    assert publisher.poll(10_000)
    publisher.recv()
    publisher.send(b"one")
    assert subscriber.recv() == b"one"
    guard.revoke(VIEWER.public)
    assert monitor.poll(5_000)
    publisher.send(b"two")
    assert not subscriber.poll(200)
    subscriber.disable_monitor()
    monitor.close(0)
    subscriber.close(0)
    door.close()
    publisher.close(0)


def test_a_key_taken_from_the_folder_is_cut_too():
    source = ChangingSource([(SERVER, FOREVER)])
    with serving(ServerSecurity("default", source)) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker"]
            source.change(authorized={})
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_a_role_taken_by_the_policy_is_cut_and_one_given_comes_in():
    source = ChangingSource([(SERVER, FOREVER)])
    with Records() as records, serving(ServerSecurity("default", source)) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker"]
            rules = source.rules
            source.change(rules=())
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            source.change(rules=rules)
            wait_until(lambda: len([t for t in records.texts if "policy reloaded" in t]) == 2)
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker"]
        assert "policy reloaded" in str(records.texts)


def test_a_state_that_cannot_be_read_changes_nothing():
    source = ChangingSource([(SERVER, FOREVER)])
    with Records() as records, serving(ServerSecurity("default", source)) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker"]
            good, source.load = source.load, lambda: (_ for _ in ()).throw(ConfigError("broken"))
            source.change()
            records.wait_for("reload failed", "not readable")
            assert peer.ask(b"claim") == [b"yes", b"worker"]
            source.load = good
            source.change(authorized={})
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)


# ---- promise 8: rotation of the server's key ---------------------------------------------


def test_old_and_new_server_key_are_served_in_the_grace_window_and_nobody_is_cut():
    new = KeyPair.generate("server")
    source = ChangingSource([(SERVER, FOREVER)])
    with Records() as records, serving(ServerSecurity("default", source)) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as before:
            assert before.ask(b"claim") == [b"yes", b"worker"]
            source.change(pairs=[(new, FOREVER), (SERVER, time.time() + 3600)])
            records.wait_for("server keys changed")
            for server in (SERVER, new, SERVER, new):
                with Peer(service.endpoint, DEVELOPER, server.public) as peer:
                    assert peer.ask(b"put", timeout_s=20) == [b"yes", b"developer"]
            assert before.ask(b"claim") == [b"yes", b"worker"]
            assert not before.wait_for(zmq.EVENT_DISCONNECTED, timeout_s=0.2)


def test_after_the_grace_window_the_old_server_key_is_served_no_more():
    new = KeyPair.generate("server")
    source = ChangingSource([(new, FOREVER), (SERVER, time.time() + 3600)])
    with serving(ServerSecurity("default", source)) as service:
        with (
            Peer(service.endpoint, WORKER, SERVER.public) as old,
            Peer(service.endpoint, DEVELOPER, new.public) as good,
        ):
            # Each may have met the other key's listener first.
            assert old.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            assert good.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            assert old.ask(b"claim") == [b"yes", b"worker"]
            assert good.ask(b"put") == [b"yes", b"developer"]
            source.change(pairs=[(new, FOREVER), (SERVER, time.time() + 1)])
            assert old.wait_for(zmq.EVENT_DISCONNECTED)
            assert good.wait_for(zmq.EVENT_DISCONNECTED)
            assert good.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            assert good.ask(b"put") == [b"yes", b"developer"]
            assert old.wait_for(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
            assert not old.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED, timeout_s=0.5)


def test_who_came_again_when_a_server_key_retired_is_cut_when_it_is_revoked():
    new = KeyPair.generate("server")
    viewers = [KeyPair.generate(f"viewer-{n}") for n in range(3)]
    source = ChangingSource([(new, FOREVER), (SERVER, time.time() + 3600)])
    source.authorized = {pair.public.z85: pair.public.name for pair in viewers}
    source.rules = (Rule(Role.VIEWER, ("default",), key="viewer-*"),)
    guard = ServerSecurity("default", source, limits=Limits(handshake_ms=300))
    publisher = process_context().socket(zmq.XPUB)
    publisher.linger = 0
    to_maintain = threading.Event()
    door = guard.guard(publisher, verbs=[Verb.SUBSCRIBE], on_change=to_maintain.set)
    endpoint = door.bind("tcp://127.0.0.1:*")
    with contextlib.ExitStack() as stack:
        peers = []
        # Handshakes that do not coincide: libzmq waits once to twice as long.
        for pair, again_ms in zip(viewers, (20, 100, 400), strict=True):
            peer = Peer(
                endpoint, pair, new.public, kind=zmq.SUB, subscribe=b"",
                reconnect_ivl=again_ms, reconnect_ivl_max=0,
            )  # fmt: skip
            peers.append(stack.enter_context(peer))
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        # Long after their handshakes.
        source.change(pairs=[(new, FOREVER), (SERVER, time.time() + 2)])
        while len(door._listeners.keys) > 1:
            assert to_maintain.wait(10)
            to_maintain.clear()
            door.maintain()
        for peer in peers:
            # libzmq's own end of it waits for the socket's owner to be in a call.
            wait_until(
                lambda p=peer: [
                    publisher.poll(0),
                    p.wait_for(zmq.EVENT_DISCONNECTED, timeout_s=0.02),
                ][1]
            )
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        names = sorted(source.authorized.values())
        wait_until(lambda: sorted(who.subject for _, who in door.peers()) == names)
        for pair, peer in list(zip(viewers, peers, strict=True))[:-1]:
            guard.revoke(pair.public)
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        assert not peers[-1].wait_for(zmq.EVENT_DISCONNECTED, timeout_s=0.2)
    door.close()
    publisher.close(0)
    guard.close()


def test_every_request_is_answered_through_a_rotation():
    new = KeyPair.generate("server")
    source = ChangingSource([(SERVER, FOREVER)])
    with Records() as records, serving(ServerSecurity("default", source)) as service:
        answers: list[object] = []
        done = threading.Event()

        def ask_on():
            with Peer(service.endpoint, WORKER, SERVER.public) as peer:
                while not done.is_set():
                    answers.append(peer.ask(b"claim"))

        asker = threading.Thread(target=ask_on)
        asker.start()
        source.change(pairs=[(new, FOREVER), (SERVER, time.time() + 3600)])
        records.wait_for("server keys changed")
        with Peer(service.endpoint, DEVELOPER, new.public) as peer:
            assert peer.ask(b"put", timeout_s=20) == [b"yes", b"developer"]
        done.set()
        asker.join()
        assert set(map(tuple, answers)) == {(b"yes", b"worker")}


def test_a_client_that_trusts_two_keys_finds_the_one_that_is_served():
    with serving(security()) as service:
        client = ClientSecurity(WORKER, [STRANGER.public, SERVER.public])
        assert find_server_key(service.endpoint, client) == SERVER.public
        nobody = ClientSecurity(WORKER, [STRANGER.public, VIEWER.public])
        assert find_server_key(service.endpoint, nobody, timeout_s=0.3) is None
        refused = ClientSecurity(STRANGER, [VIEWER.public, SERVER.public])
        with pytest.raises(HandshakeError, match="refused our key"):
            find_server_key(service.endpoint, refused)


# ---- promise 15: what breaks fails closed --------------------------------------------------


def test_a_handler_that_fails_refuses_and_comes_back(monkeypatch):
    from zfast.security.doorkeeper import Doorkeeper

    judge = Doorkeeper._judge
    with Records() as records, serving(security()) as service:
        monkeypatch.setattr(Doorkeeper, "_judge", lambda *_, **__: 1 / 0)
        with Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_DISCONNECTED)
            records.wait_for("refused", "error")
            monkeypatch.setattr(Doorkeeper, "_judge", judge)
            assert peer.ask(b"claim") == [b"yes", b"worker"]


def test_a_gate_that_dies_fails_closed_and_is_made_anew():
    with Records() as records, serving(security()) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as known:
            assert known.ask(b"claim") == [b"yes", b"worker"]
            process_gate().command(lambda: 1 / 0)
            records.wait_for("gate restarted", "ZeroDivisionError")
            assert known.ask(b"claim") == [b"yes", b"worker"]
            with Peer(service.endpoint, DEVELOPER, SERVER.public) as peer:
                assert peer.ask(b"put", timeout_s=20) == [b"yes", b"developer"]
            with Peer(service.endpoint, STRANGER, SERVER.public) as stranger:
                assert stranger.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_without_a_handler_nobody_comes_in():
    # libzmq itself refuses, because the socket has a ZAP domain and enforces it.
    context = zmq.Context()
    guarded = context.socket(zmq.ROUTER)
    guarded.zap_domain, guarded.curve_server = b"zfast/x", True
    guarded.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    guarded.curve_secretkey = SERVER.secret.reveal()
    port = guarded.bind_to_random_port("tcp://127.0.0.1")
    with Peer(f"tcp://127.0.0.1:{port}", WORKER, SERVER.public) as peer:
        assert (
            peer.wait_for(
                zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
                zmq.EVENT_HANDSHAKE_FAILED_AUTH,
                zmq.EVENT_HANDSHAKE_SUCCEEDED,
            )
            != zmq.EVENT_HANDSHAKE_SUCCEEDED
        )
    guarded.close(0)
    context.term()


def test_another_zap_handler_in_the_context_is_an_error_that_says_so():
    gate = process_gate()
    gate.stop()
    other = process_context().socket(zmq.REP)
    try:
        wait_until(lambda: is_bound(other, "inproc://zeromq.zap.01"))
        guarded = process_context().socket(zmq.ROUTER)
        with pytest.raises(ConfigError, match="another ZAP handler"):
            security().guard(guarded, verbs=[Verb.PUT])
        guarded.close(0)
    finally:
        other.close(0)
        process_gate().stop()


def is_bound(other, endpoint):
    """Bind it; the endpoint of a closed socket is free a moment later."""
    try:
        other.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno != zmq.EADDRINUSE:
            raise
        return False
    return True


# ---- limits ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [{"frame_nbytes": 100}, {"half_open": 0}, {"handshake_ms": 1.5}, {"guests": -1}]
)
def test_a_limit_out_of_range_is_an_error(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Limits(**limits)


def test_a_silent_peer_is_closed_in_time_and_recorded():
    guard = security(limits=Limits(handshake_ms=300))
    with Records() as records, serving(guard) as service:
        with socket.create_connection(("127.0.0.1", service.port)) as silent:
            silent.settimeout(10)
            start_s = time.monotonic()
            while silent.recv(4096):
                pass
            assert time.monotonic() - start_s < 1.3
        record = records.wait_for("refused", "handshake not finished")
        assert str(record["address"]).startswith("127.0.0.1:")


def test_one_half_open_connection_too_many_costs_the_oldest():
    guard = security(limits=Limits(half_open=4, handshake_ms=60_000))
    with Records() as records, serving(guard) as service:
        with Peer(service.endpoint, WORKER, SERVER.public) as known:
            assert known.ask(b"claim") == [b"yes", b"worker"]
            silent = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(5)]
            silent[0].settimeout(10)
            while silent[0].recv(4096):
                pass
            records.wait_for("refused", "too many half-open connections")
            assert known.ask(b"claim") == [b"yes", b"worker"]
            assert not known.wait_for(zmq.EVENT_DISCONNECTED, timeout_s=0.1)
            for connection in silent:
                connection.close()


def test_closing_a_door_lets_go_of_everything():
    for _ in range(3):
        with serving(security()) as service, Peer(service.endpoint, WORKER, SERVER.public) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker"]
    gate = process_gate()
    finished = threading.Event()
    gate.command(finished.set)
    assert finished.wait(10)
    assert gate._guards == {}


def test_a_port_is_free_for_the_next_once_its_socket_was_closed():
    guard = security()
    url = "tcp://127.0.0.1:*"
    for _ in range(30):
        guarded = process_context().socket(zmq.ROUTER)
        door = guard.guard(guarded, verbs=[Verb.PUT])
        url = door.bind(url)
        door.close()
        guarded.close(0)


def test_who_comes_while_a_door_is_closed_is_let_in_by_the_next_at_its_port():
    guard = security()
    closing = process_context().socket(zmq.ROUTER)
    door = guard.guard(closing, verbs=ALL_VERBS)
    endpoint = door.bind("tcp://127.0.0.1:*")
    door.close()
    gate = process_gate()
    finished = threading.Event()
    gate.command(finished.set)
    assert finished.wait(10)
    # Nobody guards the port now, and it still listens.
    with Peer(endpoint, WORKER, SERVER.public) as peer:
        assert peer.wait_for(zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        closing.close(0)
        with serving(security(), url=endpoint):
            assert peer.ask(b"claim") == [b"yes", b"worker"]


def test_a_fork_needs_security_of_its_own(monkeypatch):
    guard = security()
    guarded = process_context().socket(zmq.ROUTER)
    with monkeypatch.context() as fork:
        fork.setattr("os.getpid", lambda: 1)
        with pytest.raises(ConfigError, match="belongs to the parent"):
            guard.guard(guarded, verbs=[Verb.PUT])
    guarded.close(0)


# ---- promise 12: topics ---------------------------------------------------------------------


def test_a_publisher_grants_topics_by_the_subscribers_key_not_by_what_it_asks_for():
    guard = security()
    publisher = process_context().socket(zmq.XPUB)
    publisher.linger = 0
    publisher.setsockopt(zmq.XPUB_MANUAL, 1)
    door = guard.guard(publisher, verbs=[Verb.SUBSCRIBE])
    endpoint = door.bind("tcp://127.0.0.1:*")
    topics = {"viewer": b"prod/", "developer": b"staging/"}
    subscribers = {}
    for pair in (VIEWER, DEVELOPER):
        subscriber = process_context().socket(zmq.SUB)
        subscriber.linger = 0
        ClientSecurity(pair, [SERVER.public])._set_options(subscriber, SERVER.public)
        subscriber.subscribe(b"")  # everything
        subscriber.connect(endpoint)
        subscribers[pair.public.name] = subscriber
    for _ in subscribers:
        assert publisher.poll(20_000)
        asked = publisher.recv(copy=False)
        identity = door.authorise(str(asked.get("User-Id")), Verb.SUBSCRIBE)
        publisher.setsockopt(zmq.SUBSCRIBE, topics[identity.subject])
    publisher.send(b"prod/one")
    publisher.send(b"staging/two")
    assert subscribers["viewer"].recv() == b"prod/one"
    assert subscribers["developer"].recv() == b"staging/two"
    for subscriber in subscribers.values():
        assert not subscriber.poll(100)
        subscriber.close(0)
    door.close()
    publisher.close(0)
