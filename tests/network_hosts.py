"""Hosts of their own on one machine: network namespaces, with lines or a switch between them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

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


def ip(*arguments: str) -> str:
    """Run a command of iproute2; what it said."""
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout


class Hosts:
    """A server's host and some clients', each with a line of its own to the server's.

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
        self._connect()

    def _connect(self) -> None:
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

    def server_address(self, number: int) -> str:
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


class SwitchedHosts(Hosts):
    """A server's host and some clients' at one switch: what two say to each other no third hears.

    Each has one interface, and one address that all others know it by.
    """

    def __init__(self, n_clients: int) -> None:
        super().__init__(n_clients)
        self._hosts = [self.server, *self.clients]
        self._switch = f"{self.server}w"
        self._names = [*self._hosts, self._switch]

    def _connect(self) -> None:
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        for host in self._hosts:
            port = self._port(host)
            ip("-n", host, "link", "add", "up0", "type", "veth", "peer", "name", port,
               "netns", self._switch)  # fmt: skip
            ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
            ip("-n", host, "address", "add", f"{self.address(host)}/24", "dev", "up0")
            ip("-n", host, "link", "set", "up0", "up")

    def _port(self, host: str) -> str:
        return f"to{self._hosts.index(host)}"

    def address(self, host: str) -> str:
        """A host's address, as all others see it."""
        return f"10.201.0.{self._hosts.index(host) + 1}"

    def server_address(self, number: int) -> str:
        """The server's address, the same for all clients."""
        return self.address(self.server)

    @staticmethod
    def passed_nbytes(host: str) -> int:
        """What has passed a host's interface since it is there, both ways together."""
        (link,) = json.loads(ip("-n", host, "-json", "-statistics", "link", "show", "dev", "up0"))
        return int(link["stats64"]["rx"]["bytes"]) + int(link["stats64"]["tx"]["bytes"])

    def part(self, *hosts: str) -> None:
        """Let nothing pass between these any more, and tell nobody, as a firewall does."""
        self._isolate(hosts, "on")

    def unite(self, *hosts: str) -> None:
        """Let these hear each other again."""
        self._isolate(hosts, "off")

    def _isolate(self, hosts: tuple[str, ...], value: str) -> None:
        for host in hosts:
            _run("bridge", "-n", self._switch, "link", "set", "dev", self._port(host),
                 "isolated", value)  # fmt: skip

    def unplug(self, host: str) -> None:
        """Take a host from the network: it hears nobody, and nobody it."""
        ip("-n", self._switch, "link", "set", self._port(host), "down")

    def plug(self, host: str) -> None:
        """Put a host back on the network."""
        ip("-n", self._switch, "link", "set", self._port(host), "up")

    @staticmethod
    def slow(host: str, mbit: int) -> None:
        """Let a host send no faster than so many megabits a second."""
        _run("tc", "-n", host, "qdisc", "add", "dev", "up0", "root", "tbf",
             "rate", f"{mbit}mbit", "burst", "256kb", "latency", "100ms")  # fmt: skip


@contextlib.contextmanager
def hosts(n_clients: int) -> Iterator[Hosts]:
    """Skips the test where namespaces cannot be made."""
    with _opened(Hosts(n_clients)) as made:
        yield made


@contextlib.contextmanager
def switched_hosts(n_clients: int) -> Iterator[SwitchedHosts]:
    """Skips the test where namespaces cannot be made."""
    with _opened(SwitchedHosts(n_clients)) as made:
        yield made


_AnyHosts = TypeVar("_AnyHosts", bound=Hosts)


@contextlib.contextmanager
def _opened(made: _AnyHosts) -> Iterator[_AnyHosts]:
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
