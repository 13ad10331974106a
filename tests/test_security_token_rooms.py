"""Tokens of a certified issuer where users meet them: a Channel, remote workers, the relay.

Each peer has a key that nobody knows; all that it may do, its token gives it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from events_process import make_event
from hub_jobs import Jobs, hang_once, simple
from oidc_issuer import Provider, policy_for, providing
from security_peers import Records
from zfast import Channel
from zfast.errors import AccessDeniedError, TokenError, ZfastError
from zfast.events.event import StateEvent
from zfast.events.publisher import Publisher
from zfast.events.relay import Relay
from zfast.events.subscription import Subscription
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity
from zfast.security.sources import FixedSource, ServerState

SERVER = KeyPair.generate("server")


@pytest.fixture(scope="module")
def provider(oidc_folder: Path) -> Iterator[Provider]:
    """An issuer whose tokens last for seconds."""
    with providing(oidc_folder, lasts_s=3) as made:
        yield made


@pytest.fixture
def security(provider: Provider) -> Iterator[ServerSecurity]:
    """Of a server that knows no key at all."""
    made = server_security(provider)
    yield made
    made.close()


def server_security(provider: Provider) -> ServerSecurity:
    state = ServerState(((SERVER, float("inf")),), {}, frozenset(), policy_for(provider.url))
    return ServerSecurity("prod", FixedSource(state))


class Bearer:
    """A client with a key of its own, and the tokens of one client of the issuer."""

    def __init__(self, provider: Provider, name: str) -> None:
        self._provider, self._name = provider, name
        self._last = ""
        self.renews = True
        self.pair = KeyPair.generate(name)
        self.security = ClientSecurity(self.pair, [SERVER.public], token=self.token)

    def token(self) -> str:
        if self.renews or not self._last:
            self._last = self._provider.token(self._name).decode()
        return self._last


@contextlib.contextmanager
def receiving(security: ServerSecurity) -> Iterator[tuple[str, list[object]]]:
    """A Channel whose owner takes what comes: its endpoint, and what came."""
    came: list[object] = []
    ended = threading.Event()
    rx = Channel.bind("tcp://127.0.0.1:*", security=security)

    def receive() -> None:
        while not ended.is_set():
            with contextlib.suppress(ZfastError):
                came.append(rx.recv(timeout=0.1))
        rx.abort()

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield rx.endpoint, came
    finally:
        ended.set()
        thread.join()


def say_on(tx: Channel) -> None:
    """Say something again and again, until that fails."""
    try:
        for _ in range(1000):
            tx.send("more", timeout=20)
            time.sleep(0.02)
    finally:
        tx.abort()


def test_a_channel_takes_a_token_has_it_renewed_and_ends_with_it(provider, security):
    bearer = Bearer(provider, "okta-developer")
    with Records() as records, receiving(security) as (endpoint, came):
        tx = Channel.connect(endpoint, security=bearer.security)
        records.wait_for("token taken")
        until_s = time.monotonic() + 4  # longer than any token lasts
        n_sent = 0
        while time.monotonic() < until_s:
            tx.send(n_sent, timeout=20)
            n_sent += 1
            time.sleep(0.02)
        assert sum(text.startswith("token taken") for text in records.texts) > 1
        bearer.renews = False
        with pytest.raises(ZfastError):
            say_on(tx)
        n_came = len(came)
        assert came[:n_sent] == list(range(n_sent))
        with pytest.raises(TokenError, match=r"refused our token: .*(expired|ended)"):
            Channel.connect(endpoint, security=bearer.security)
        assert len(came) == n_came


def test_a_token_under_a_key_that_is_new_at_the_issuer_is_taken_a_moment_later(
    provider, security, monkeypatch
):
    monkeypatch.setattr("zfast.security.issuer.UNKNOWN_KEY_COOLDOWN_S", 2.0)
    with Records() as records, receiving(security) as (endpoint, _):
        Channel.connect(endpoint, security=Bearer(provider, "okta-developer").security).abort()
        provider.rotate()
        Channel.connect(endpoint, security=Bearer(provider, "okta-developer").security).abort()
        assert any("Unable to find" in text for text in records.texts)


@pytest.mark.parametrize("client", ["okta-nobody", "aws-role", "bound"])
def test_a_token_without_the_role_opens_no_channel(client, provider, security):
    """No role; a role that may not put; the token of another key."""
    bearer = Bearer(provider, client)
    with receiving(security) as (endpoint, came):
        with pytest.raises(ZfastError) as refusal:
            say_on(Channel.connect(endpoint, security=bearer.security))
        assert isinstance(refusal.value, TokenError) == (client != "aws-role")
        assert came == []


def test_a_key_may_do_without_a_token_where_none_is_taken():
    pair = KeyPair.generate("dev")
    security = ServerSecurity.from_keys(SERVER, [(pair.public, Role.DEVELOPER)])
    client = ClientSecurity(pair, [SERVER.public], token=lambda: "for-somebody-else")
    with receiving(security) as (endpoint, came):
        with Channel.connect(endpoint, security=client) as tx:
            tx.send("x", timeout=20)
        assert came == ["x"]


# ---- workers -------------------------------------------------------------------------------


@contextlib.contextmanager
def working(
    endpoint: str, folder: Path, provider: Provider, renews: threading.Event
) -> Iterator[subprocess.Popen[bytes]]:
    """``zfast worker`` as in a pod: a mounted key of its own, and a token that is renewed."""
    folder.mkdir()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.5):
            if renews.is_set():
                write(folder / "token", provider.token("eks-pod").decode())

    write(folder / "token", provider.token("eks-pod").decode())
    kubelet = threading.Thread(target=renew)
    kubelet.start()
    write(folder / "key", KeyPair.generate("pod").secret.reveal().decode())
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-c", "import sys; from zfast.cli import main; sys.exit(main())",
                "worker", endpoint, "--workers", "1", "--token-file", str(folder / "token"),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parent),
                "ZFAST_CLIENT_SECRET_KEY_FILE": str(folder / "key"),
                "ZFAST_SERVER_PUBLIC_KEYS": SERVER.public.z85,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        ended.set()
        kubelet.join()
        process.terminate()
        process.wait(60)


def write(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.touch(mode=0o600)
    beside.write_text(text)
    beside.replace(path)


def test_workers_come_by_a_token_and_when_it_ends_their_jobs_run_elsewhere(
    provider, security, runtime_root, journal, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    hub = Hub(
        Policy(0, lease_s=300),  # nobody is given up for being silent
        executor="hub_executor:FunctionExecutor",
        environment={},
        on_note=lambda *_: None,
        remote=RemoteEndpoint("tcp://127.0.0.1:*", security),
        versions={"zfast": "0.1.0"},
    )
    jobs = Jobs(hub)
    renews, always = threading.Event(), threading.Event()
    renews.set()
    always.set()
    try:
        with working(hub.endpoint, tmp_path / "a", provider, renews) as first:
            assert jobs.run(simple, (journal, "j", 4)) == "j"  # longer than any token lasts
            renews.clear()
            outcome = jobs.submit(hang_once, (journal, "k"))
            journal.wait_for("k", "begin")
            assert first.wait(60) == 1
            told = (tmp_path / "a" / "log").read_text()
            assert "refused our token" in told or "may not do that" in told
            with working(hub.endpoint, tmp_path / "b", provider, always):
                assert jobs.value(outcome) == 2
    finally:
        hub.close()


# ---- the relay -----------------------------------------------------------------------------


@contextlib.contextmanager
def relaying(security: ServerSecurity, url: str = "tcp://127.0.0.1:*") -> Iterator[str]:
    made = Relay(url, security=security)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made.endpoint
    finally:
        made.stop()
        thread.join()


def test_a_relay_takes_the_tokens_of_publishers_and_subscribers(provider, security, tmp_path):
    reader, writer = Bearer(provider, "aws-role"), Bearer(provider, "eks-pod")
    folder = tmp_path / "ev"
    folder.mkdir(mode=0o700)

    def say(number: int) -> None:
        event = make_event(number)
        event.environment = "prod"
        publisher.publish(event)

    def hear(number: int) -> None:
        event = events.recv(30)
        while not isinstance(event, StateEvent) or event.run_id != f"run-{number}":
            event = events.recv(30)

    def hear_on() -> None:
        while True:
            say(4)
            hear(4)
            time.sleep(0.05)

    with contextlib.ExitStack() as stack:
        with relaying(security) as url:
            publisher = stack.enter_context(
                Publisher(folder=folder, relay=url, security=writer.security)
            )
            events = stack.enter_context(
                Subscription(url, environment="prod", security=reader.security)
            )
            events.wait_joined(30)
            say(1)
            hear(1)
            until_s = time.monotonic() + 4
            while time.monotonic() < until_s:
                with contextlib.suppress(TimeoutError):
                    events.recv(0.2)
            say(2)
            hear(2)
        other = server_security(provider)  # which knows nothing of what the first was brought
        stack.callback(other.close)
        with relaying(other, url):
            say(3)
            hear(3)
            reader.renews = False
            with pytest.raises(AccessDeniedError):  # of which TokenError is one
                hear_on()
