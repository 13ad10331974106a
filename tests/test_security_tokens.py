"""Bearer tokens: a certified issuer's, and forged ones, over guarded sockets."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
import zmq
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from zmq.utils.monitor import recv_monitor_message

from oidc_issuer import RULES, policy_for, providing
from security_peers import Peer, Records, Service, serving, wait_until
from zfast.context import process_context
from zfast.errors import AccessDeniedError, TokenError
from zfast.events.relay import Relay
from zfast.events.relay_link import relay_endpoints
from zfast.security import issuer as issuer_module
from zfast.security.access import Access
from zfast.security.client_security import ClientSecurity
from zfast.security.connections import Connection
from zfast.security.curve_keys import KeyPair
from zfast.security.limits import Limits
from zfast.security.policy import Policy
from zfast.security.server_security import ServerSecurity
from zfast.security.sources import FixedSource, ServerState
from zfast.security.tokens import TokenDesk

SERVER = KeyPair.generate("server")
PEER = KeyPair.generate("peer")
THIEF = KeyPair.generate("thief")
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP384R1())


def security_for(policy: Policy, environment: str = "prod", **limits: int) -> ServerSecurity:
    state = ServerState(((SERVER, float("inf")),), {}, frozenset(), policy)
    return ServerSecurity(environment, FixedSource(state), limits=Limits(**limits))


def connect(service: Service, pair: KeyPair = PEER) -> Peer:
    return Peer(service.endpoint, pair, SERVER.public)


# ---- an issuer of our own, which can also misbehave --------------------------------------------


class Issuer:
    """Serves keys, counts how often it is asked, and signs whatever it is told."""

    def __init__(self) -> None:
        self.keys = {"k1": (RSA, "RS256"), "k2": (EC, "ES384")}
        self.asked = 0
        self.down = False
        self.too_long = False
        self.keys_path = "/jwks"
        #: What it sends in place of an answer.
        self.broken = b""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                if issuer.down:
                    self.send_error(503)
                    return
                if issuer.broken:
                    self.wfile.write(issuer.broken)
                    return
                answer = issuer.answer(self.path)
                if answer is None:
                    self.send_error(404)
                    return
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str) -> object:
        if path.endswith("openid-configuration"):
            return {"issuer": self.url, "jwks_uri": self.url + self.keys_path}
        if path != self.keys_path:
            return None
        if self.too_long:
            return {"keys": ["x" * 300_000]}
        keys = []
        for kid, (key, algorithm) in self.keys.items():
            kind = jwt.algorithms.get_default_algorithms()[algorithm]
            keys.append(
                {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": algorithm}
            )
        return {"keys": keys}

    def sign(self, kid: str = "k1", *, lasts_s: float = 60, header=None, **claims: object) -> str:
        key, algorithm = self.keys.get(kid, (RSA, "RS256"))
        now = time.time()
        body = {
            "iss": self.url,
            "aud": "zfast://prod",
            "sub": "someone",
            "iat": now,
            "exp": now + lasts_s,
            "groups": ["prefect-prod-developer"],
            "jti": base64.b64encode(os.urandom(9)).decode(),
            **claims,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, key, algorithm, headers={"kid": kid, **(header or {})})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    served = Issuer()
    yield served
    served.close()


def unsigned(token: str) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').rstrip(b"=").decode()
    return f"{head}.{token.split('.')[1]}."


def by_shared_secret(issuer: Issuer) -> str:
    """The classic: the issuer's public key as the secret of an HMAC."""
    import hashlib
    import hmac as hmac_module

    from cryptography.hazmat.primitives import serialization

    public = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    body = issuer.sign().split(".")[1]
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k1"}').rstrip(b"=").decode()
    mac = hmac_module.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGED = {
    "ended": lambda i: i.sign(lasts_s=-1),
    "not yet": lambda i: i.sign(nbf=time.time() + 60),
    "issued in the future": lambda i: i.sign(iat=time.time() + 60),
    "another audience": lambda i: i.sign(aud="zfast://staging"),
    "no audience": lambda i: i.sign(aud=None),
    "another issuer": lambda i: i.sign(iss="https://evil.example"),
    "no expiry": lambda i: i.sign(exp=None),
    "no subject": lambda i: i.sign(sub=None),
    "an empty subject": lambda i: i.sign(sub=""),
    "for a year": lambda i: i.sign(lasts_s=365 * 86400),
    "an unknown key": lambda i: i.sign("k9"),
    "the wrong key": lambda i: i.sign("k9", header={"kid": "k2"}),
    "unsigned": lambda i: unsigned(i.sign()),
    "a shared secret": by_shared_secret,
    "tampered with": lambda i: i.sign()[:-6] + "AAAAAA",
    "a critical header": lambda i: i.sign(header={"crit": ["b64"], "b64": False}),
    "no token": lambda i: "garbage",
    "empty": lambda i: "",
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_token_allows_nothing(what, issuer):
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service) as peer:
            answer = peer.ask(b"token", FORGED[what](issuer).encode())
            assert answer is not None
            assert answer[0] == b"no"
            assert peer.ask(b"put") == [b"no"]


@pytest.mark.parametrize("kid", ["k1", "k2"])
def test_a_good_token_allows_what_its_role_may(kid, issuer):
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service) as peer:
            assert peer.ask(b"put") == [b"no"]
            assert peer.ask(b"token", issuer.sign(kid).encode()) == [b"yes", b"Developer"]
            assert peer.ask(b"put") == [b"yes", b"idp:someone"]
            assert peer.ask(b"admin") == [b"no"]


def test_a_token_of_another_environment_allows_nothing_here(issuer):
    with serving(security_for(policy_for(issuer.url), "staging"), takes_tokens=True) as service:
        with connect(service) as peer:
            answer = peer.ask(b"token", issuer.sign().encode())
            assert answer is not None
            assert answer[0] == b"no"
            assert b"no role in staging" in answer[1]


def test_at_a_door_that_takes_no_tokens_an_unknown_key_does_not_come_in(issuer):
    with serving(security_for(policy_for(issuer.url))) as service, connect(service) as peer:
        assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_a_token_replayed_from_another_key_is_refused(issuer):
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        for token in (issuer.sign(), issuer.sign("k2", jti=None)):
            with connect(service) as peer, connect(service, THIEF) as thief:
                assert peer.ask(b"token", token.encode()) == [b"yes", b"Developer"]
                answer = thief.ask(b"token", token.encode())
                assert answer is not None
                assert b"belongs to another key" in answer[1]
                assert thief.ask(b"put") == [b"no"]
                assert peer.ask(b"token", token.encode()) == [b"yes", b"Developer"]


def test_a_token_with_cnf_is_taken_from_its_key_alone_even_the_first_time(issuer):
    token = issuer.sign(cnf={"jkt": PEER.public.fingerprint}).encode()
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service, THIEF) as thief:
            answer = thief.ask(b"token", token)
            assert answer is not None
            assert b"by its claim cnf" in answer[1]
        with connect(service) as peer:
            assert peer.ask(b"token", token) == [b"yes", b"Developer"]
            for other in ({}, {"jkt": 1}, "text", {"x5t#S256": "a"}):
                answer = peer.ask(b"token", issuer.sign(cnf=other).encode())
                assert answer is not None
                assert answer[0] == b"no"


def test_a_key_cannot_become_another_subject(issuer):
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service) as peer:
            assert peer.ask(b"token", issuer.sign().encode()) == [b"yes", b"Developer"]
            answer = peer.ask(b"token", issuer.sign(sub="another").encode())
            assert answer is not None
            assert answer[0] == b"no"


def test_what_a_token_allowed_ends_with_it_on_an_open_connection(issuer):
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service) as peer:
            ends_s = time.monotonic() + 2
            assert peer.ask(b"token", issuer.sign(lasts_s=2).encode()) == [b"yes", b"Developer"]
            assert peer.ask(b"put") == [b"yes", b"idp:someone"]
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert ends_s - 0.5 < time.monotonic() < ends_s + 5


def test_a_renewed_token_goes_on_without_a_new_connection(issuer):
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service) as peer:
            assert peer.ask(b"token", issuer.sign(lasts_s=2).encode()) == [b"yes", b"Developer"]
            assert peer.ask(b"token", issuer.sign(lasts_s=60).encode()) == [b"yes", b"Developer"]
            assert not peer.wait_for(zmq.EVENT_DISCONNECTED, timeout_s=3)
            assert peer.ask(b"put") == [b"yes", b"idp:someone"]


def test_a_clock_set_forward_ends_a_grant_and_one_set_back_does_not_lengthen_it(
    issuer, monkeypatch
):
    access = Access("prod", policy_for(issuer.url), {})
    desk = TokenDesk()
    desk.present(access, PEER.public.z85, issuer.sign(lasts_s=60), 9999).result(30)
    assert access.identities(PEER.public.z85)
    now, ticks = time.time(), time.monotonic()
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now + 3600)
        assert not access.identities(PEER.public.z85)
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now - 3600)
        clock.setattr(time, "monotonic", lambda: ticks + 61)
        assert not access.identities(PEER.public.z85)
    desk.close()


def test_a_guest_that_brings_no_token_is_shown_out_and_guests_are_few(issuer):
    guard = security_for(policy_for(issuer.url), guest_ms=500, guests=1)
    with Records() as records, serving(guard, takes_tokens=True) as service:
        with connect(service) as guest:
            assert guest.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            with connect(service, THIEF) as second:
                records.wait_for("refused", "too many guests")
                assert guest.wait_for(zmq.EVENT_DISCONNECTED)
                records.wait_for("cut", "no token in time")
                # libzmq tried again by itself, and there was room.
                assert second.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)


def test_a_guest_that_sends_frames_without_end_is_cut_after_few_of_them(issuer, monkeypatch):
    received_nbytes = []

    def note_and_cut(connection, cut=Connection.cut):
        received_nbytes.append(connection.received_nbytes())
        return cut(connection)

    monkeypatch.setattr(Connection, "cut", note_and_cut)
    guard = security_for(policy_for(issuer.url), guest_ms=60_000)
    with Records() as records, serving(guard, takes_tokens=True) as service:
        with connect(service) as good, connect(service, THIEF) as stranger:
            assert stranger.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            stranger.socket.send_multipart([bytes(1 << 20)] * 1024, copy=False)
            records.wait_for("cut", "too much for a guest")
            assert stranger.wait_for(zmq.EVENT_DISCONNECTED)
            assert received_nbytes[0] < 256 << 20
            assert service.heard == []
            # Who brings a token, be it of the greatest length, is a guest no more.
            token = issuer.sign(padding="x" * 11_000)
            assert 14_000 < len(token) < Limits().token_nbytes
            assert good.ask(b"token", token.encode()) == [b"yes", b"Developer"]
            for _ in range(10):
                assert good.ask(b"put", bytes(50_000)) == [b"yes", b"idp:someone"]


def test_a_guest_does_not_multiply_nor_stay_by_coming_again(issuer):
    guard = security_for(policy_for(issuer.url), guest_ms=1500)
    with Records() as records, serving(guard, takes_tokens=True) as service:
        with connect(service) as guest:
            assert guest.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            came_s = time.monotonic()
            with connect(service) as again:  # with the same key
                records.wait_for("refused", "too many guests")
                assert guest.wait_for(zmq.EVENT_DISCONNECTED)
                assert time.monotonic() - came_s < 4
                assert again.wait_for(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                # And a guest that has brought its token may have as many as it likes.
                answer = again.ask(b"token", issuer.sign().encode())
                assert answer == [b"yes", b"Developer"]
                with connect(service) as third:
                    assert third.ask(b"put") is not None


def test_a_clock_that_is_set_forward_ends_a_token_also_for_who_only_listens(issuer, monkeypatch):
    guard = security_for(policy_for(issuer.url))
    relay = Relay("tcp://127.0.0.1:*", security=guard)
    thread = threading.Thread(target=relay.run)
    thread.start()
    _, events_url, _ = relay_endpoints(relay.endpoint)
    token = issuer.sign(lasts_s=60)
    client = ClientSecurity(PEER, [SERVER.public], token=lambda: token)
    bearer, subscriber = (process_context().socket(kind) for kind in (zmq.DEALER, zmq.SUB))
    news = subscriber.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    try:
        client.guard(bearer, relay.endpoint)
        assert client.may_connect(relay.endpoint, 20)
        client.guard(subscriber, events_url, brings_token=False)
        subscriber.subscribe(b"prod/")
        subscriber.connect(events_url)
        assert news.poll(20_000)
        assert recv_monitor_message(news)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
        assert not news.poll(1500)  # looked at meanwhile, and left alone
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3600)
        assert news.poll(10_000)
        assert recv_monitor_message(news)["event"] == zmq.EVENT_DISCONNECTED
    finally:
        subscriber.disable_monitor()
        for opened in (news, subscriber, bearer):
            opened.close(0)
        relay.stop()
        thread.join()
        guard.close()


@pytest.mark.parametrize("part", ["header", "payload"])
def test_a_token_made_to_break_a_parser_is_one_that_is_refused(part, issuer):
    deep = base64.urlsafe_b64encode(b"[" * 5000 + b"]" * 5000).rstrip(b"=").decode()
    head, body, signature = issuer.sign().split(".")
    token = f"{deep}.{body}.{signature}" if part == "header" else f"{head}.{deep}.{signature}"
    guard = security_for(policy_for(issuer.url))
    with Records() as records, serving(guard, takes_tokens=True) as service:
        with connect(service) as peer:
            answer = peer.ask(b"token", token.encode())
            assert answer is not None
            assert answer[0] == b"no"
        assert not any(record.levelname == "ERROR" for record in records.records)


def test_a_token_that_is_too_long_is_not_looked_at(issuer):
    guard = security_for(policy_for(issuer.url), token_nbytes=100)
    with serving(guard, takes_tokens=True) as service, connect(service) as peer:
        answer = peer.ask(b"token", issuer.sign().encode())
        assert answer is not None
        assert b"longer than allowed" in answer[1]
    assert issuer.asked == 0


def test_no_record_and_no_error_holds_a_token(issuer):
    token = issuer.sign()
    forged = issuer.sign()[:-6] + "AAAAAA"
    with (
        Records() as records,
        serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service,
    ):
        with connect(service) as peer:
            told = [peer.ask(b"token", text.encode()) for text in (token, forged)]
    shown = "".join(records.texts) + repr(told) + repr(service.door.identity(PEER.public.z85))
    for text in (token, forged):
        assert text not in shown
        assert text.split(".")[2] not in shown


# ---- the issuer's keys ---------------------------------------------------------------------


def config_of(policy: Policy):
    return policy.issuers[0]


def test_fifty_forged_key_ids_cost_the_issuer_nothing(issuer):
    checker = issuer_module.Issuer(config_of(policy_for(issuer.url)))
    checker.check(issuer.sign())
    asked = issuer.asked
    for number in range(50):
        with pytest.raises(TokenError):
            checker.check(issuer.sign(f"forged-{number}"))
    assert issuer.asked == asked


def test_a_key_id_that_was_not_asked_for_yet_is_refused_for_now(issuer, monkeypatch):
    monkeypatch.setattr(issuer_module, "UNKNOWN_KEY_COOLDOWN_S", 60.0)
    checker = issuer_module.Issuer(config_of(policy_for(issuer.url)))
    checker.check(issuer.sign())
    issuer.keys["k3"] = issuer.keys["k1"]
    claims, refusals = {}, []

    def check_new_key() -> bool:
        try:
            claims.update(checker.check(issuer.sign("k3")))
        except TokenError as refusal:
            refusals.append(refusal)
        return bool(claims)

    assert not check_new_key()
    checker._keys.cooldown_duration = 0.2
    wait_until(check_new_key)
    assert all(refusal.for_now for refusal in refusals)

    def forged_is_final() -> bool:
        with pytest.raises(TokenError, match="Unable to find") as caught:
            checker.check(issuer.sign("k9"))
        return not caught.value.for_now

    wait_until(forged_is_final)


@pytest.mark.parametrize(
    "broken",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"],
)
def test_a_broken_answer_of_the_issuer_is_an_outage(broken, issuer):
    issuer.broken = broken
    with pytest.raises(TokenError, match="cannot be had") as caught:
        issuer_module.Issuer(config_of(policy_for(issuer.url))).check(issuer.sign())
    assert caught.value.for_now


def test_an_issuer_may_move_its_keys(issuer, monkeypatch):
    monkeypatch.setattr(issuer_module, "UNKNOWN_KEY_COOLDOWN_S", 0.0)
    checker = issuer_module.Issuer(config_of(policy_for(issuer.url)))
    checker.check(issuer.sign())
    issuer.keys_path = "/moved"
    issuer.keys["k3"] = issuer.keys["k1"]
    assert checker.check(issuer.sign("k3"))["sub"] == "someone"


def test_an_issuer_that_is_down_is_asked_once_and_known_peers_stay(issuer, monkeypatch):
    monkeypatch.setattr(issuer_module, "OUTAGE_COOLDOWN_S", 60.0)
    with serving(security_for(policy_for(issuer.url)), takes_tokens=True) as service:
        with connect(service) as peer:
            assert peer.ask(b"token", issuer.sign().encode()) == [b"yes", b"Developer"]
            issuer.down = True
            fresh = issuer_module.Issuer(config_of(policy_for(issuer.url)))
            asked = issuer.asked
            for _ in range(10):
                with pytest.raises(TokenError, match="cannot be had"):
                    fresh.check(issuer.sign())
            assert issuer.asked == asked + 1
            assert peer.ask(b"put") == [b"yes", b"idp:someone"]
            # Its keys are still known, so renewal works too.
            assert peer.ask(b"token", issuer.sign().encode()) == [b"yes", b"Developer"]


def test_an_issuer_that_comes_back_is_believed_again(issuer, monkeypatch):
    monkeypatch.setattr(issuer_module, "OUTAGE_COOLDOWN_S", 0.0)
    checker = issuer_module.Issuer(config_of(policy_for(issuer.url)))
    issuer.down = True
    with pytest.raises(TokenError, match="cannot be had"):
        checker.check(issuer.sign())
    issuer.down = False
    assert checker.check(issuer.sign())["sub"] == "someone"


@pytest.mark.parametrize("what", ["too long", "another issuer"])
def test_documents_of_the_issuer_have_limits_too(what, issuer, monkeypatch):
    if what == "too long":
        issuer.too_long = True
    else:
        monkeypatch.setattr(issuer, "answer", lambda _: {"issuer": "x", "jwks_uri": issuer.url})
    with pytest.raises(TokenError, match="cannot be had"):
        issuer_module.Issuer(config_of(policy_for(issuer.url))).check(issuer.sign())


def test_a_desk_that_is_full_refuses_and_says_so(issuer, monkeypatch):
    monkeypatch.setattr("zfast.security.tokens.MAX_BINDINGS", 1)
    access = Access("prod", policy_for(issuer.url), {})
    desk = TokenDesk()
    desk.present(access, PEER.public.z85, issuer.sign(), 9999).result(30)
    with pytest.raises(TokenError, match="too many tokens"):
        desk.present(access, THIEF.public.z85, issuer.sign(), 9999).result(30)
    desk.close()


# ---- a certified issuer --------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES384"])
def test_tokens_shaped_like_those_of_okta_aws_and_eks(oidc_folder, algorithm):
    with providing(oidc_folder, PEER.public.fingerprint) as provider:
        guard = security_for(policy_for(provider.url))
        with serving(guard, takes_tokens=True) as service:
            for client, role in (
                ("okta-developer", b"Developer"),
                ("aws-role", b"Runner"),
                ("eks-pod", b"Worker"),
                ("bound", b"Viewer"),
            ):
                pair = PEER if client == "bound" else KeyPair.generate()
                with connect(service, pair) as peer:
                    assert peer.ask(b"token", provider.token(client, algorithm)) == [b"yes", role]
            with connect(service, THIEF) as thief:
                for client in ("okta-nobody", "bound"):
                    answer = thief.ask(b"token", provider.token(client, algorithm))
                    assert answer is not None
                    assert answer[0] == b"no"


def test_keys_that_the_issuer_rotates_are_found_and_an_outage_keeps_known_peers(
    oidc_folder, monkeypatch
):
    monkeypatch.setattr(issuer_module, "UNKNOWN_KEY_COOLDOWN_S", 0.0)
    with providing(oidc_folder) as provider:
        guard = security_for(policy_for(provider.url))
        with serving(guard, takes_tokens=True) as service, connect(service) as peer:
            assert peer.ask(b"token", provider.token("okta-developer")) == [b"yes", b"Developer"]
            provider.rotate()
            for algorithm in ("RS256", "ES384"):
                renewed = provider.token("okta-developer", algorithm)
                answer = peer.ask(b"token", renewed)
                if algorithm == "RS256":
                    assert answer == [b"yes", b"Developer"]
                else:  # another client of the issuer is another subject
                    assert answer is not None
                    assert answer[0] == b"no"
            late = provider.token("okta-developer")
            provider.close()
            assert peer.ask(b"put") == [b"yes", b"idp:okta-developer.RS256"]
            assert peer.ask(b"token", late) == [b"yes", b"Developer"]


def test_the_command_line_explains_a_token_of_the_issuer(oidc_folder, tmp_path, monkeypatch):
    from test_security_keys import zfast

    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("ZFAST_KEYS", str(folder))
    with providing(oidc_folder) as provider:
        (folder / "policy.toml").write_text(
            f'[[issuer]]\nname = "idp"\nissuer = "{provider.url}"\naudience = "zfast://prod"\n{RULES}'
        )
        token = provider.token("eks-pod").decode()
        done = zfast("token", "check", token, "-e", "prod", "--json")
        answer = json.loads(done.stdout)
        assert answer["role"] == "Worker"
        assert [step["matched"] for step in answer["steps"]] == [False, False, True]
        piped = zfast("token", "check", "-", "-e", "prod", "--json", stdin=token + "\n")
        assert json.loads(piped.stdout) == answer
        forged = zfast("token", "check", token[:-6] + "AAAAAA", "-e", "prod")
        assert forged.returncode == 1
        assert "Signature verification failed" in forged.stderr
        assert token not in done.stdout + forged.stdout + forged.stderr


def test_without_a_desk_a_door_takes_no_token():
    with serving(security_for(Policy())) as service:
        with pytest.raises(AccessDeniedError, match="no tokens are taken"):
            service.door.present(PEER.public.z85, "x").result(5)
