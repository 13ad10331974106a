"""Hosts at a switch are what tests take them for: nobody hears what two others say."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from hub_jobs import settled
from network_hosts import SwitchedHosts, switched_hosts

N_BYTES = 1_000_000
#: Takes connections, one after the other, and prints how much each sent.
_LISTENER = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as listener:
    print("listens", flush=True)
    while True:
        connection, _ = listener.accept()
        nbytes = 0
        while data := connection.recv(1 << 20):
            nbytes += len(data)
        print(nbytes, flush=True)
"""
#: Sends so many bytes to an address, all of them or none.
_SENDER = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 7000), timeout=1) as connection:
        connection.settimeout(30)
        connection.sendall(bytes(int(sys.argv[2])))
    print("sent")
except OSError:
    print("cut")
"""


def send(network: SwitchedHosts, host: str, to: str, nbytes: int = 1) -> str:
    sender = network.start(host, "-c", _SENDER, network.address(to), str(nbytes))
    return sender.communicate(timeout=60)[0].strip()


@contextlib.contextmanager
def listening(network, host):
    listener = network.start(host, "-c", _LISTENER)
    try:
        assert listener.stdout.readline().strip() == "listens"
        yield listener.stdout
    finally:
        listener.kill()
        listener.communicate()


def test_what_two_clients_say_does_not_pass_the_servers_interface():
    with switched_hosts(2) as network, listening(network, network.clients[1]) as heard:
        first, second = network.clients
        assert send(network, first, second, N_BYTES) == "sent"
        assert int(heard.readline()) == N_BYTES
        assert network.passed_nbytes(first) > N_BYTES
        assert network.passed_nbytes(second) > N_BYTES
        assert network.passed_nbytes(network.server) < N_BYTES / 10


def test_two_clients_are_parted_and_a_third_hears_both():
    with switched_hosts(2) as network:
        first, second = network.clients
        with listening(network, second), listening(network, network.server):
            network.part(first, second)
            assert send(network, first, second) == "cut"
            assert send(network, first, network.server) == "sent"
            assert send(network, second, network.server) == "sent"
            network.unite(first, second)
            settled(lambda: send(network, first, second) == "sent")


def test_a_host_is_unplugged_and_plugged_in_again():
    with switched_hosts(1) as network, listening(network, network.server):
        (client,) = network.clients
        network.unplug(client)
        assert send(network, client, network.server) == "cut"
        network.plug(client)
        settled(lambda: send(network, client, network.server) == "sent")


def test_a_slow_line_goes_on_where_it_was_when_it_heals():
    with switched_hosts(2) as network, listening(network, network.clients[1]) as heard:
        first, second = network.clients
        network.slow(first, 20)
        sender = network.start(first, "-c", _SENDER, network.address(second), str(8 * N_BYTES))
        settled(lambda: network.passed_nbytes(second) > N_BYTES)
        network.part(first, second)
        before = network.passed_nbytes(second)
        with pytest.raises(subprocess.TimeoutExpired):
            sender.wait(0.5)
        assert network.passed_nbytes(second) - before < N_BYTES / 2
        network.unite(first, second)
        assert sender.communicate(timeout=60)[0].strip() == "sent"
        assert int(heard.readline()) == 8 * N_BYTES
