"""A relay on tcp with keys: who may publish, who may hear what, and when that ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zfast
from events_process import make_event
from security_peers import wait_until
from zfast.context import process_context
from zfast.errors import AccessDeniedError, ConfigError, HandshakeError
from zfast.events.event import Event, Gap, StateEvent
from zfast.events.frames import encode_body, pack_frame
from zfast.events.messages import Ask, Hello, History, Welcome, decode_message, encode_message
from zfast.events.publisher import Publisher
from zfast.events.reactions import on_event
from zfast.events.relay import Relay
from zfast.events.relay_link import relay_endpoints
from zfast.events.subscription import Subscription
from zfast.events.topics import make_topic
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import PublicKey
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

_ZFAST = "import sys; sys.argv[0] = 'zfast'; from zfast.cli import main; main()"
#: Name, role and environment of each key of a client.
CLIENTS = (
    ("viewer", Role.VIEWER, "prod"),
    ("other-viewer", Role.VIEWER, "prod"),
    ("worker", Role.WORKER, "prod"),
    ("other-worker", Role.WORKER, "prod"),
    ("runner", Role.RUNNER, "prod"),
    ("stranger", Role.OWNER, "staging"),
)


@pytest.fixture
def folder(short_folder: Path) -> Path:
    """Where publishers are found."""
    return short_folder


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    """A key folder of this host: a server's key, and one for each client."""
    made = KeyFolder(tmp_path_factory.mktemp("k") / "keys")
    made.new("prod", "server")
    for name, role, environment in CLIENTS:
        own = made.new("prod", name)
        made.authorize(own.pair.public, name, role=role, environment=environment)
    return made


@pytest.fixture
def relay(keys: KeyFolder) -> Iterator[str]:
    security = ServerSecurity.load("prod", folder=keys.path)
    made = Relay("tcp://127.0.0.1:*", security=security)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made.endpoint
    made.stop()
    thread.join()
    security.close()


def key(keys: KeyFolder, name: str) -> ClientSecurity:
    return ClientSecurity.load("prod", name=name, folder=keys.path)


def event(number: int, environment: str = "prod") -> StateEvent:
    made = make_event(number)
    made.environment = environment
    return made


def take(events: Subscription, n: int, timeout: float = 20.0) -> list[Event]:
    return [events.recv(timeout) for _ in range(n)]


def numbers(events: list[Event]) -> list[int]:
    return [int(e.run_id.removeprefix("run-")) for e in events if isinstance(e, StateEvent)]


def subscribe(keys: KeyFolder, relay: str, name: str, environment: str = "prod") -> Subscription:
    return Subscription(relay, environment=environment, security=key(keys, name))


# ---- who comes in, and what for ------------------------------------------------------------


def test_a_subscriber_of_prod_hears_prod_and_nothing_of_staging(
    keys: KeyFolder, relay: str, folder: Path
) -> None:
    with subscribe(keys, relay, "viewer") as early:
        early.wait_joined(20)
        with Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher:
            for number in range(200):
                publisher.publish(event(number, "staging" if number % 2 else "prod"))
            got = take(early, 100)
            with subscribe(keys, relay, "runner") as late:
                truth = take(late, 100)
            publisher.publish(event(200, "staging"))  # the last one: nobody waits for it
    assert numbers(got) == list(range(0, 200, 2))
    assert sorted(numbers(truth)) == list(range(0, 200, 2))
    assert all(isinstance(e, StateEvent) and e.environment == "prod" for e in got + truth)


@pytest.mark.parametrize("environment", ["staging", "*", "pro", "production"])
def test_another_environment_is_refused_whatever_is_asked_for(
    environment: str, keys: KeyFolder, relay: str
) -> None:
    with (
        subscribe(keys, relay, "viewer", environment) as events,
        pytest.raises(AccessDeniedError, match="this relay is for prod"),
    ):
        events.recv(20)


def test_who_has_no_role_here_is_not_let_in(keys: KeyFolder, relay: str) -> None:
    with (
        subscribe(keys, relay, "stranger") as events,
        pytest.raises(HandshakeError, match="refused our key"),
    ):
        events.recv(20)


def test_a_reaction_tells_a_refusal_as_soon_as_it_is_known(keys: KeyFolder, relay: str) -> None:
    options = {"environment": "prod", "security": key(keys, "stranger")}
    with on_event(print, endpoint=relay, **options) as reaction:
        started_s = time.monotonic()
        with pytest.raises(HandshakeError, match="refused our key"):
            reaction.wait_joined(30)
        assert time.monotonic() - started_s < 20


def test_who_stays_with_a_server_key_that_has_ended_says_so_and_can_be_started_again(
    keys: KeyFolder, relay: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with subscribe(keys, relay, "viewer") as events:
        events.wait_joined(20)
        with Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher:
            publisher.publish(event(0))
            take(events, 1)
            keys.rotate("prod", "server", 0)
            with pytest.raises(HandshakeError, match="is not the server we trust"):
                events.recv(30)
            wait_until(lambda: "states do not reach the relay" in caplog.text)
    with subscribe(keys, relay, "viewer") as events:
        events.wait_joined(20)


def test_a_worker_may_not_listen(keys: KeyFolder, relay: str) -> None:
    with (
        subscribe(keys, relay, "worker") as events,
        pytest.raises(AccessDeniedError, match="may not subscribe"),
    ):
        events.recv(20)


def test_a_viewer_may_not_publish_and_its_program_goes_on(
    keys: KeyFolder, relay: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "do not reach the relay" in record.getMessage():
                told.set()

    handler = Tell()
    logging.getLogger("zfast.events").addHandler(handler)
    try:
        with (
            subscribe(keys, relay, "other-viewer") as events,
            Subscription(folder=folder, environment="prod") as local,
            Publisher(folder=folder, relay=relay, security=key(keys, "viewer")) as publisher,
            Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as other,
        ):
            events.wait_joined(20)
            publisher.publish(event(1))
            assert told.wait(20)
            other.publish(event(2))
            assert numbers(take(events, 1)) == [2]
            assert sorted(numbers(take(local, 2))) == [1, 2]  # on its own host it is heard
    finally:
        logging.getLogger("zfast.events").removeHandler(handler)


def test_without_keys_there_is_no_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setenv("ZFAST_KEYS", str(tmp_path / "none"))
    url = "tcp://127.0.0.1:5"
    with pytest.raises(ConfigError, match="open to anyone"):
        Relay(url)
    with pytest.raises(ConfigError, match="not a loopback address"):
        Relay("tcp://0.0.0.0:*", insecure=True)
    for connect in (lambda: Subscription(url), lambda: Publisher(folder=folder, relay=url)):
        with pytest.raises(ConfigError, match="takes keys") as caught:
            connect()
        assert "zfast keys new" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="takes keys"), zfast.broadcast(endpoint=url):
        pass


def test_a_relay_that_is_not_the_one_we_trust_is_not_spoken_to(
    keys: KeyFolder, relay: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = KeyFolder(tmp_path_factory.mktemp("o") / "keys")
    impostor = other.new("prod", "server").pair.public
    mine = ClientSecurity(key(keys, "viewer").pair, [impostor])
    with (
        Subscription(relay, environment="prod", security=mine) as events,
        pytest.raises(HandshakeError, match="not the server we trust"),
    ):
        events.recv(60)


# ---- a message's word counts for nothing ---------------------------------------------------


@contextlib.contextmanager
def raw_socket(kind: int, keys: KeyFolder, name: str, url: str) -> Iterator[zmq.Socket[bytes]]:
    """What somebody with a key, and with no zfast, may send."""
    opened = process_context().socket(kind)
    opened.linger = 0
    key(keys, name).guard(opened, url)
    try:
        opened.connect(url)
        yield opened
    finally:
        opened.close(0)


def test_subscriptions_of_others_topics_are_ignored(
    keys: KeyFolder, relay: str, folder: Path
) -> None:
    control_url, events_url, _ = relay_endpoints(relay)
    assert control_url == relay
    with (
        raw_socket(zmq.SUB, keys, "viewer", events_url) as greedy,
        subscribe(keys, relay, "other-viewer") as events,
    ):
        for topic in (b"", b"staging/", b"prod", b"~", b"~1"):
            greedy.subscribe(topic)
        events.wait_joined(20)
        with Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher:
            for number in range(10):
                publisher.publish(event(number, "staging"))
                publisher.publish(event(number))
            assert numbers(take(events, 10)) == list(range(10))
        assert not greedy.poll(200)
        greedy.subscribe(b"prod/")  # this is its own to have
        with Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher:
            deadline = time.monotonic() + 20
            while not greedy.poll(50) and time.monotonic() < deadline:
                publisher.publish(event(11))
        assert greedy.recv(zmq.DONTWAIT).startswith(b"prod/")


def test_nobody_speaks_for_another_publisher(keys: KeyFolder, relay: str, folder: Path) -> None:
    publish_url = relay_endpoints(relay)[2]
    topic = make_topic(["prod", "task-run", "etl", "Failed"])
    with (
        Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher,
        subscribe(keys, relay, "viewer") as events,
        raw_socket(zmq.PUB, keys, "other-worker", publish_url) as forger,
    ):
        events.wait_joined(20)
        publisher.publish(event(1))
        assert numbers(take(events, 1)) == [1]
        forged = pack_frame(topic, publisher.id, (9,) * 5, encode_body(event(666)))
        for _ in range(20):
            forger.send(forged)
            forger.send(os.urandom(40))
            time.sleep(0.01)  # its connection may not stand yet
        publisher.publish(event(2))
        assert numbers(take(events, 1)) == [2]


def test_no_question_of_a_viewer_ends_the_relay(keys: KeyFolder, relay: str, folder: Path) -> None:
    with (
        Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher,
        subscribe(keys, relay, "viewer") as events,
        raw_socket(zmq.DEALER, keys, "other-viewer", relay) as asking,
    ):
        events.wait_joined(20)
        publisher.publish(event(1))
        assert numbers(take(events, 1)) == [1]
        for prefix, count in ((b"prod/a/b/c/d/e/", -1), (b"prod/a/b/c/d/e/", 0), (b"prod/", -1)):
            ask = Ask(number=1, prefixes=[prefix], seen={publisher.id: [count]})
            asking.send(encode_message(ask))
        asking.send(encode_message(Hello()))
        assert asking.poll(20_000)  # what came before the answer to this was dealt with
        assert isinstance(decode_message(asking.recv()), Welcome)
        publisher.publish(event(2))
        assert numbers(take(events, 1)) == [2]


def test_no_event_of_a_worker_ends_the_relay_or_a_subscriber(
    keys: KeyFolder, relay: str, folder: Path
) -> None:
    topic = make_topic(["prod", "task-run", "etl", "Running"])
    # A map with one field that nobody knows: lists in lists, deeper than a decoder goes.
    deep = b"\x81\xa1x" + b"\x91" * 3000 + b"\xc0"
    publisher_id = os.urandom(16)
    with (
        subscribe(keys, relay, "viewer") as events,
        raw_socket(zmq.DEALER, keys, "other-worker", relay) as control,
        Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher,
    ):
        events.wait_joined(20)
        control.send_multipart(
            [
                encode_message(History(publisher=publisher_id)),
                pack_frame(topic, publisher_id, (1,) * 5, deep),
            ]
        )
        assert events.recv(20) == Gap(publisher=publisher_id.hex(), lost=1)
        publisher.publish(event(2))
        assert numbers(take(events, 1)) == [2]


# ---- revocation ----------------------------------------------------------------------------


def test_a_revoked_key_is_cut_at_once_and_nobody_else_is(
    keys: KeyFolder, relay: str, folder: Path
) -> None:
    with (
        Publisher(folder=folder, relay=relay, security=key(keys, "worker")) as publisher,
        subscribe(keys, relay, "viewer") as events,
        subscribe(keys, relay, "other-viewer") as others,
    ):
        events.wait_joined(20)
        others.wait_joined(20)
        publisher.publish(event(1))
        assert numbers(take(events, 1) + take(others, 1)) == [1, 1]
        revoked = key(keys, "viewer").pair.public
        keys.revoke(PublicKey(revoked.z85), "viewer")
        with pytest.raises(HandshakeError, match="refused our key"):
            events.recv(20)
        publisher.publish(event(2))
        assert numbers(take(others, 1)) == [2]
        keys.revoke(PublicKey(key(keys, "worker").pair.public.z85), "worker")
        with Publisher(folder=folder, relay=relay, security=key(keys, "other-worker")) as other:
            other.publish(event(3))
            got = others.recv(20)
    assert numbers([got]) == [3]


# ---- the command line and flows ------------------------------------------------------------


def start_zfast(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ZFAST, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def test_relay_and_watch_take_the_key_folder(keys: KeyFolder, folder: Path) -> None:
    options = ("-e", "prod", "--folder", str(keys.path))
    relaying = start_zfast("relay", "tcp://127.0.0.1:*", "--json", *options)
    assert relaying.stdout is not None
    url = json.loads(relaying.stdout.readline())["endpoint"]
    watching = start_zfast(
        "watch", "--endpoint", url, "--key", "viewer", "--json", "--count", "1", *options
    )
    with Publisher(folder=folder, relay=url, security=key(keys, "worker")) as publisher:
        publisher.publish(event(1))
        out, error = watching.communicate(timeout=50)
    assert watching.returncode == 0, error
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["joined", "state"]
    refused = start_zfast("watch", "--endpoint", url, "--key", "stranger", *options)
    _, error = refused.communicate(timeout=50)
    assert refused.returncode == 1
    assert "refused our key" in error
    relaying.terminate()
    assert relaying.communicate(timeout=20)[1] == ""
    assert relaying.returncode == 0


def test_a_relay_without_keys_says_how_to_make_them(tmp_path: Path) -> None:
    done = start_zfast("relay", "tcp://127.0.0.1:*", "--folder", str(tmp_path / "none"))
    _, error = done.communicate(timeout=50)
    assert done.returncode == 1
    assert "zfast keys new server" in error


def test_a_flows_workers_publish_with_the_keys_of_their_host(
    keys: KeyFolder,
    relay: str,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
    short_folder: Path,
) -> None:
    from prefect import flow, task

    @task
    def works(number: int) -> int:
        return number

    @flow(task_runner=zfast.ZfastTaskRunner(max_workers=1))
    def guarded() -> int:
        return works.submit(1).result()

    monkeypatch.setenv("ZFAST_KEYS", str(keys.path))
    monkeypatch.setenv("ZFAST_ENVIRONMENT", "prod")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    told: list[Any] = []
    with subscribe(keys, relay, "viewer") as events:
        events.wait_joined(20)
        with zfast.broadcast(endpoint=relay, key="runner"):
            assert guarded() == 1
        while len(told) < 6:
            told.append(events.recv(20))
    assert {(e.name, e.state_name) for e in told} >= {
        ("works", "Running"), ("works", "Completed"), ("guarded", "Completed")
    }  # fmt: skip
    workers = {e.worker for e in told}
    assert len(workers) == 2  # the flow's process, and its worker's
