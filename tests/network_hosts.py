"""Hosts of their own on one machine: network namespaces, each with a line to the server's."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()
#: What ``ip netns exec`` puts over files of /etc, by namespace.
FILES = Path("/etc/netns")

#: A program that ends once Prefect's API answers at the URL that it is given.
WAIT_FOR_API = """
import sys, time, urllib.request
deadline_s = time.monotonic() + 60
while True:
    try:
        urllib.request.urlopen(sys.argv[1] + "/health", timeout=1)
        break
    except OSError:
        if time.monotonic() > deadline_s:
            raise
        time.sleep(0.1)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


class Hosts:
    """A server's host and some clients', with nothing between them but the network.

    Attributes:
        server: The name of the server's namespace.
        clients: Those of the clients'.
    """

    def __init__(self, n_clients: int) -> None:
        prefix = f"zf{os.getpid()}x{next(_numbers)}"
        self.server = f"{prefix}s"
        self.clients = [f"{prefix}c{number}" for number in range(n_clients)]
        self._names = [self.server, *self.clients]

    def open(self) -> None:
        for name in self._names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, client in enumerate(self.clients):
            # The names of both ends are free in namespaces of their own.
            ends = (f"to{number}", "up0")
            ip("-n", self.server, "link", "add", ends[0], "type", "veth", "peer", "name", ends[1],
               "netns", client)  # fmt: skip
            for host, end, last in ((self.server, ends[0], 1), (client, ends[1], 2)):
                ip("-n", host, "address", "add", f"10.200.{number}.{last}/24", "dev", end)
                ip("-n", host, "link", "set", end, "up")

    def close(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            shutil.rmtree(FILES / name, ignore_errors=True)

    def call_server(self, name: str) -> None:
        """Let all hosts know the server by this name, in an ``/etc/hosts`` of their own."""
        for number, host in enumerate([self.server, *self.clients]):
            folder = FILES / host
            folder.mkdir(parents=True)
            address = self.server_address(max(number - 1, 0))
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")

    def route_to_server(self) -> None:
        """Let the clients reach the server by any of its addresses."""
        for number, client in enumerate(self.clients):
            ip("-n", client, "route", "add", "default", "via", self.server_address(number))

    @staticmethod
    def server_address(number: int) -> str:
        """The server's address, as a client sees it."""
        return f"10.200.{number}.1"

    @staticmethod
    def start(host: str, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A Python program on a host; its standard input and output are ours."""
        return subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, *command],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@contextlib.contextmanager
def hosts(n_clients: int) -> Iterator[Hosts]:
    """Skips the test where namespaces cannot be made."""
    made = Hosts(n_clients)
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        try:
            made.open()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield made
    finally:
        made.close()
