"""Mutated frames against each socket that zfast listens with, beside honest clients.

    python tests/soak_sockets.py [--frames 1000000] [--seed 1]

The frames come over connections of peers that have a key and a role, so that they reach every
decoder: messages of each protocol with bytes changed, taken out and put in, and garbage. Strangers
with mutated handshakes come between, to every tcp port. The server is a process of its own; when
all have come, each room still does what it is for, and its memory is what it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import zmq

from events_process import make_event
from security_peers import GREETING, HELLO, mutate
from soak_security import insult
from zfast import Channel, _fallback
from zfast.context import process_context
from zfast.events import messages as events_messages
from zfast.events.event import StateEvent
from zfast.events.frames import encode_body, pack_frame
from zfast.events.messages import encode_message
from zfast.events.publisher import Publisher
from zfast.events.subscription import Subscription
from zfast.events.topics import make_topic
from zfast.runner import protocol
from zfast.runner import remote_protocol as remote
from zfast.security.client_security import ClientSecurity
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.token_messages import TOKEN_KIND

#: A server that takes nothing for so long hangs.
SEND_MS = 30_000
#: Frames between two looks at the server; a stranger comes with each.
BURST = 200
#: What the memory may grow by once everything has been used: more than a session's window, and
#: less than any leak of a byte a frame in a million.
GROWTH_NBYTES = 64 << 20
CLIENTS = (
    ("developer", Role.DEVELOPER),
    ("honest", Role.DEVELOPER),
    ("worker", Role.WORKER),
    ("publisher", Role.WORKER),
    ("viewer", Role.VIEWER),
)
#: For each socket: what connects there, and with which key.
SOCKETS = {
    "channel": (zmq.DEALER, "developer"),
    "hub": (zmq.DEALER, ""),
    "remote": (zmq.DEALER, "worker"),
    "relay": (zmq.DEALER, "viewer"),
    "relay events": (zmq.XSUB, "viewer"),
    "relay publish": (zmq.PUB, "worker"),
}


@dataclass
class Report:
    """What it came to."""

    frames: dict[str, int] = field(default_factory=dict)
    strangers: int = 0
    seconds: float = 0.0
    rss_mib: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        frames = ", ".join(f"{name} {n}" for name, n in self.frames.items())
        return (
            f"{sum(self.frames.values())} frames in {self.seconds:.0f} s: {frames}; "
            f"and {self.strangers} strangers\n"
            f"memory of the server, MiB: {' '.join(f'{rss:.1f}' for rss in self.rss_mib)}"
        )


def soak(n_frames: int, seed: int, seconds: float = float("inf")) -> Report:
    """Send so many frames to each socket, or for so long in all.

    Raises AssertionError when something is not as promised.
    """
    rng = random.Random(seed)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="zf") as folder, serving(Path(folder)) as server:
        process, endpoints, keys = server
        looked_at = psutil.Process(process.pid)
        with contextlib.ExitStack() as stack:
            check = stack.enter_context(honest(process, endpoints, keys, Path(folder) / "ev"))
            check(1)
            start_s = time.monotonic()
            attacks = {
                name: stack.enter_context(attacking(name, endpoints[name], keys, rng))
                for name in SOCKETS
            }
            report.frames = dict.fromkeys(SOCKETS, 0)
            rounds = max(1, n_frames // BURST)
            for number in range(rounds):
                for name, attack in attacks.items():
                    for _ in range(BURST):
                        attack()
                    report.frames[name] += BURST
                    if endpoints[name].startswith("tcp:"):
                        port = int(endpoints[name].rpartition(":")[2])
                        insult(port, mutate(rng, GREETING + HELLO), rng)
                        report.strangers += 1
                if number % max(1, rounds // 8) == rounds // 16:
                    check(2 + number)
                    report.rss_mib.append(looked_at.memory_info().rss / (1 << 20))
                    report.seconds = time.monotonic() - start_s
                    print(report, flush=True)
                assert process.poll() is None, process.returncode
                if time.monotonic() - start_s > seconds:
                    break
            check(2 + rounds)
            report.rss_mib.append(looked_at.memory_info().rss / (1 << 20))
            report.seconds = time.monotonic() - start_s
            assert process.poll() is None
    assert report.rss_mib[-1] - report.rss_mib[0] < GROWTH_NBYTES >> 20, report
    return report


# ---- the server, and honest clients ---------------------------------------------------------


@contextlib.contextmanager
def serving(
    folder: Path,
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], KeyFolder]]:
    keys = KeyFolder(folder / "keys")
    keys.new("prod", "server")
    for name, role in CLIENTS:
        keys.authorize(keys.new("prod", name).pair.public, name, role, "prod")
    here = Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, str(here / "battered_server.py")],
        env={**os.environ, "ZFAST_KEYS": str(keys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline()), keys
        except BaseException:
            process.send_signal(signal.SIGABRT)  # it tells where its threads are
            process.wait()
            raise
        finally:
            process.kill()


def key(keys: KeyFolder, name: str) -> ClientSecurity:
    return ClientSecurity.load("prod", name=name, folder=keys.path)


@contextlib.contextmanager
def honest(
    process: subprocess.Popen[str], endpoints: dict[str, str], keys: KeyFolder, folder: Path
) -> Iterator[Callable[[int], None]]:
    """A call that raises unless each room does what it is for."""
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    folder.mkdir(mode=0o700)
    with (
        Channel.connect(endpoints["channel"], security=key(keys, "honest")) as tx,
        Publisher(
            folder=folder, relay=endpoints["relay"], security=key(keys, "publisher")
        ) as publisher,
        Subscription(
            endpoints["relay"], environment="prod", security=key(keys, "honest")
        ) as events,
    ):
        events.wait_joined(60)

        def check(number: int) -> None:
            tx.send("question", timeout=60)
            assert tx.recv(timeout=60) == "answer"
            event = make_event(number, flow="honest")
            event.environment = "prod"
            publisher.publish(event)
            heard = events.recv(60)
            while not isinstance(heard, StateEvent) or heard.run_id != f"run-{number}":
                heard = events.recv(60)
            stdin.write("job\n")
            stdin.flush()
            assert stdout.readline() == "done\n"

        yield check
        tx.abort()


# ---- what is sent ---------------------------------------------------------------------------


@contextlib.contextmanager
def attacking(
    name: str, endpoint: str, keys: KeyFolder, rng: random.Random
) -> Iterator[Callable[[], None]]:
    """A call that sends one message of one frame or more, at least one of them wrong."""
    kind, key_name = SOCKETS[name]
    samples = list(SAMPLES[name]())
    opened: list[zmq.Socket[bytes]] = []

    def connect() -> None:
        made = process_context().socket(kind)
        made.linger, made.sndtimeo = 0, SEND_MS
        if key_name:
            key(keys, key_name).guard(made, endpoint)
        made.connect(endpoint)
        opened.append(made)

    def attack() -> None:
        if rng.random() < 0.0005:  # who was given up comes again
            opened.pop().close(0)
            connect()
        frames = list(rng.choice(samples))
        if rng.random() < 0.1:
            frames.append(rng.randbytes(rng.randrange(200)))
        at = rng.randrange(len(frames))
        if rng.random() < 0.95:
            frames[at] = mutate(rng, frames[at] or b"\0")
        try:
            opened[-1].send_multipart(frames)
        except zmq.Again:
            raise AssertionError(f"{name} takes nothing any more") from None
        with contextlib.suppress(zmq.ZMQError):
            while kind == zmq.DEALER:
                opened[-1].recv(zmq.DONTWAIT)

    connect()
    try:
        yield attack
    finally:
        opened[-1].close(0)


def wire(kind: int, body: bytes = b"", *buffers: bytes, **fields: int) -> list[bytes]:
    return [bytes(f) for f in _fallback.encode_message(kind, body, list(buffers), **fields)]


def channel_samples() -> Iterator[list[bytes]]:
    for kind in range(1, 12):
        for body in (b"", bytes(8), b"\x10" + bytes(15)):
            yield wire(kind, body, request_id=1)
            yield wire(kind, body, bytes(100), request_id=2)
    yield wire(2, b"a value that is bytes", flags=8)
    yield wire(TOKEN_KIND, b"a.b.c")


def control_samples(module: object, table: object) -> Iterator[list[bytes]]:
    """Each message of a table, its fields of the right types."""
    by_type: dict[str, object] = {
        "bytes": bytes(16), "str": "text", "int": 1, "bool": False, "float": 1.0,
    }  # fmt: skip
    for struct in table.kinds:  # type: ignore[attr-defined]
        values = []
        for annotation in struct.__annotations__.values():
            words = str(annotation)
            if words.startswith("dict"):
                values.append({"zfast": "1"})
            elif words.startswith(("list", "tuple")):
                values.append([])
            else:
                values.append(by_type.get(words.partition(" ")[0]))
        body = table.encode(struct(*values))  # type: ignore[attr-defined]
        for number in (0, 1, 2):
            yield wire(*body, request_id=number)
        yield wire(*body, bytes(64), request_id=3)


def remote_samples() -> Iterator[list[bytes]]:
    yield from control_samples(remote, remote.REMOTE_MESSAGES)
    join = remote.Join(protocol.PROTOCOL_VERSION, bytes(16), "host", 1)
    for _ in range(8):  # what it is about
        yield wire(*remote.REMOTE_MESSAGES.encode(join))
        yield wire(*remote.REMOTE_MESSAGES.encode(remote.Started(b"w", 1)), request_id=1)
    yield wire(TOKEN_KIND, b"a.b.c")


def hub_samples() -> Iterator[list[bytes]]:
    yield from control_samples(protocol, protocol.HUB_MESSAGES)
    yield wire(*remote.REMOTE_MESSAGES.encode(remote.AskStatus()))


def relay_samples() -> Iterator[list[bytes]]:
    m = events_messages
    frame = published()
    for message in (
        m.Hello(),
        m.Ping(source=bytes(16), nonce=bytes(8), prefixes=[b"prod/"]),
        m.Ask(number=1, prefixes=[b"prod/"], seen={bytes(16): [1]}),
        m.Bye(nonce=bytes(8)),
        m.Beat(publisher=bytes(16), position=1),
        m.Snapshot(number=1, positions={}),
    ):
        yield [encode_message(message)]
    yield [encode_message(m.History(publisher=bytes(16))), frame, frame]
    yield wire(TOKEN_KIND, b"a.b.c")


def subscription_samples() -> Iterator[list[bytes]]:
    for topic in (b"prod/", b"prod/task-run/", b"~" + bytes(8), b"", b"staging/"):
        yield [b"\x01" + topic]
        yield [b"\x00" + topic]


def published() -> bytes:
    event = make_event(1)
    event.environment = "prod"
    return pack_frame(
        make_topic(["prod", "task-run", "other", "Running"]),
        bytes(16),
        (1,) * 5,
        encode_body(event),
    )


def publish_samples() -> Iterator[list[bytes]]:
    yield [published()]


SAMPLES = {
    "channel": channel_samples,
    "hub": hub_samples,
    "remote": remote_samples,
    "relay": relay_samples,
    "relay events": subscription_samples,
    "relay publish": publish_samples,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(soak(arguments.frames, arguments.seed, arguments.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
