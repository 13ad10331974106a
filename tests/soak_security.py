"""Strangers by the hundred thousand, none of whom proves a key, while honest clients go on.

    python tests/soak_security.py [--frames 1000000] [--seed 1]

Each stranger sends one wrong frame: garbage, a mutated greeting, a mutated HELLO, or a real
client's handshake that was recorded and mutated. The server is a process of its own, whose memory,
descriptors and threads are looked at; an honest client asks all the while, and others come and go.
Then, with as many frames for each of zfast's sockets, ``soak_sockets``.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field

import psutil

from security_peers import GREETING, HELLO, echo_server, mutate
from zfast import Channel
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair

#: What the memory may grow by once the heap has its size.
GROWTH_NBYTES = 32 << 20
#: How often an honest newcomer comes, in frames of strangers.
NEWCOMER_EVERY = 2000
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Report:
    """What it came to; times in milliseconds."""

    frames: int = 0
    seconds: float = 0.0
    rss_mib: list[float] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    newcomers_ms: list[float] = field(default_factory=list)
    asked_ms: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        newcomers, asked = sorted(self.newcomers_ms), sorted(self.asked_ms)
        return (
            f"{self.frames} frames in {self.seconds:.0f} s ({self.frames / self.seconds:.0f}/s)\n"
            f"memory of the server, MiB: {' '.join(f'{rss:.1f}' for rss in self.rss_mib)}\n"
            f"its descriptors: {' '.join(map(str, self.fds))}\n"
            f"newcomers: {len(newcomers)}, median {newcomers[len(newcomers) // 2]:.1f} ms, "
            f"worst {newcomers[-1]:.1f} ms\n"
            f"requests: {len(asked)}, median {asked[len(asked) // 2]:.2f} ms, "
            f"worst {asked[-1]:.1f} ms"
        )


def soak(n_frames: int, seed: int) -> Report:
    """Send the frames; raises AssertionError when something is not as promised."""
    rng = random.Random(seed)
    pair, server = KeyPair.generate("developer"), KeyPair.generate("server")
    security = ClientSecurity(pair, [server.public])
    report = Report(n_frames)
    with echo_server(server, pair.public) as (process, endpoint):
        port = int(endpoint.rpartition(":")[2])
        looked_at = psutil.Process(process.pid)
        ended, speaks = threading.Event(), threading.Event()
        asker = threading.Thread(target=ask_on, args=(endpoint, security, ended, speaks, report))
        asker.start()
        assert speaks.wait(30)
        recorded = record_handshake(endpoint, security)
        start_s = time.monotonic()
        try:
            for number in range(n_frames):
                insult(port, wrong_bytes(rng, recorded), rng)
                if number % NEWCOMER_EVERY == 0:
                    report.newcomers_ms.append(visit(endpoint, security))
                if number % max(1, n_frames // 10) == n_frames // 20:
                    report.rss_mib.append(looked_at.memory_info().rss / (1 << 20))
                    report.fds.append(looked_at.num_fds())
        finally:
            ended.set()
            asker.join()
        report.seconds = time.monotonic() - start_s
        report.newcomers_ms.append(visit(endpoint, security))
        assert process.poll() is None
        until_s = time.monotonic() + 20
        while looked_at.num_fds() > report.fds[0] + 8 and time.monotonic() < until_s:
            time.sleep(0.1)
        report.fds.append(looked_at.num_fds())
        report.rss_mib.append(looked_at.memory_info().rss / (1 << 20))
    assert report.fds[-1] <= report.fds[0] + 8, report
    assert report.rss_mib[-1] - report.rss_mib[1] < GROWTH_NBYTES >> 20, report
    assert report.asked_ms, report
    return report


def wrong_bytes(rng: random.Random, recorded: bytes) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 300))
    if kind == 1:
        return mutate(rng, GREETING) + HELLO
    if kind == 2:
        return GREETING + mutate(rng, HELLO)
    if kind == 3:  # a true greeting and HELLO, then something else
        return recorded[:266] + mutate(rng, recorded[266:])
    return mutate(rng, recorded)


def insult(port: int, data: bytes, rng: random.Random) -> None:
    """One stranger: says it, and waits for the end or hangs up."""
    # From many addresses, as there are not so many ports.
    source = (f"127.{rng.randrange(1, 255)}.{rng.randrange(255)}.{rng.randrange(1, 255)}", 0)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(
            ("127.0.0.1", port), timeout=10, source_address=source
        ) as stranger,
    ):
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        stranger.sendall(data)
        if rng.random() < 0.8:
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):
                pass


def record_handshake(endpoint: str, security: ClientSecurity) -> bytes:
    """What a real client says until it is in: greeting, HELLO, INITIATE."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay() -> None:
            near, _ = listener.accept()
            far = socket.create_connection((host, int(port)))

            def back() -> None:
                with contextlib.suppress(OSError):
                    while data := far.recv(65536):
                        near.sendall(data)

            thread = threading.Thread(target=back, daemon=True)
            thread.start()
            with near, far, contextlib.suppress(OSError):
                while data := near.recv(65536):
                    said.extend(data)
                    far.sendall(data)
                far.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=relay)
        thread.start()
        visit(f"tcp://127.0.0.1:{listener.getsockname()[1]}", security)
        thread.join()
    return bytes(said[:700])


def visit(endpoint: str, security: ClientSecurity) -> float:
    """Come, say something, and go when it was heard; in milliseconds."""
    start_s = time.monotonic()
    with Channel.connect(endpoint, security=security) as tx:
        tx.send("hello", timeout=30)
    return (time.monotonic() - start_s) * 1000


def ask_on(
    endpoint: str,
    security: ClientSecurity,
    ended: threading.Event,
    speaks: threading.Event,
    report: Report,
) -> None:
    with Channel.connect(endpoint, security=security) as tx:
        while not ended.wait(0.01):
            start_s = time.monotonic()
            tx.send("question", timeout=30)
            assert tx.recv(timeout=30) == "answer"
            speaks.set()
            report.asked_ms.append((time.monotonic() - start_s) * 1000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(soak(arguments.frames, arguments.seed))
    import soak_sockets  # which takes from here

    print(soak_sockets.soak(arguments.frames, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
