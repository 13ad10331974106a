"""Endpoints of IPv6, and names that have addresses of both families: all who connect get there."""

from __future__ import annotations

import errno
import socket
import threading

import pytest
import zmq

from events_process import make_event
from foremen import zfast
from two_hosts import TwoHosts
from zfast import Channel, ip_family
from zfast.context import process_context
from zfast.errors import ConfigError, TransportError
from zfast.events.publisher import Publisher
from zfast.events.relay import Relay
from zfast.events.subscription import Subscription
from zfast.runner.data_endpoint import DataEndpoint
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

SERVER, OLD_SERVER = KeyPair.generate("server"), KeyPair.generate("server")
DEVELOPER = KeyPair.generate("developer")


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")


@pytest.fixture
def both_families(monkeypatch):
    """``localhost`` is ::1 first, as on many hosts, and ``six`` is nothing else."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **options):
        if host == "six":
            return look_up("::1", port, *args, **options)
        found = look_up(host, port, *args, **options)
        if host == "localhost":
            found = look_up("::1", port, *args, **options) + [
                info for info in found if info[0] == socket.AF_INET
            ]
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def passes(rx: Channel, tx: Channel) -> bool:
    tx.send("there", timeout=20)
    rx.send(rx.recv(timeout=20) + " and back", timeout=20)
    return tx.recv(timeout=20) == "there and back"


# ---- which family ---------------------------------------------------------------------------


@needs_ipv6
def test_a_name_stands_for_its_ipv4_address_where_it_has_one(both_families):
    assert ip_family.resolve("localhost", 7) == (socket.AF_INET, ("127.0.0.1", 7))
    assert ip_family.resolve("six", 7)[1][:2] == ("::1", 7)
    assert ip_family.resolve("[::1]", 7)[1][:2] == ("::1", 7)
    for host in ("no-such-host.invalid", "x" * 70):
        with pytest.raises(socket.gaierror):
            ip_family.resolve(host)


@needs_ipv6
@pytest.mark.parametrize(
    ("url", "takes_ipv6"),
    [
        ("tcp://[::1]:5", True),
        ("tcp://six:5", True),
        ("tcp://localhost:5", False),
        ("tcp://127.0.0.1:5", False),
        ("tcp://no-such-host.invalid:5", False),
        ("ipc:///tmp/a:5", False),
    ],
)
def test_a_socket_takes_ipv6_where_there_is_nothing_else(both_families, url, takes_ipv6):
    with process_context().socket(zmq.DEALER) as opened:
        ip_family.choose_family(opened, url)
        assert bool(opened.getsockopt(zmq.IPV6)) == takes_ipv6


def test_what_no_socket_can_connect_to_is_an_error_of_ours():
    with (
        process_context().socket(zmq.DEALER) as opened,
        pytest.raises(TransportError, match=r"cannot connect to tcp://\*:5560: Invalid") as caught,
    ):
        ip_family.connect(opened, "tcp://*:5560")
    assert caught.value.errno == errno.EINVAL


# ---- channels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "bound"),
    [
        pytest.param("tcp://[::1]:*", "tcp://[::1]:", marks=needs_ipv6),
        pytest.param("tcp://localhost:*", "tcp://127.0.0.1:", marks=needs_ipv6),
        pytest.param("tcp://six:*", "tcp://[::1]:", marks=needs_ipv6),
    ],
)
@pytest.mark.parametrize("servers", [[SERVER], [OLD_SERVER, SERVER]])
def test_a_guarded_channel(both_families, url, bound, servers):
    clients = [(DEVELOPER.public, Role.DEVELOPER)]
    trust = ClientSecurity(DEVELOPER, [server.public for server in servers])
    with Channel.bind(url, security=ServerSecurity.from_keys(SERVER, clients)) as rx:
        assert rx.endpoint.startswith(bound)
        name = rx.endpoint.replace("127.0.0.1", "localhost")
        with Channel.connect(name, security=trust) as tx:
            assert passes(rx, tx)


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_every_address_is_those_of_both_families(host):
    clients = [(DEVELOPER.public, Role.DEVELOPER)]
    with Channel.bind("tcp://[::]:*", security=ServerSecurity.from_keys(SERVER, clients)) as rx:
        url = rx.endpoint.replace("[::]", host)
        with Channel.connect(url, security=ClientSecurity(DEVELOPER, [SERVER.public])) as tx:
            assert passes(rx, tx)


@needs_ipv6
@pytest.mark.parametrize("host", ["[::1]", "localhost"])
@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
def test_a_channel_without_keys(both_families, host):
    with Channel.bind(f"tcp://{host}:*", insecure=True) as rx:
        url = rx.endpoint.replace("127.0.0.1", "localhost")
        with Channel.connect(url, insecure=True) as tx:
            assert passes(rx, tx)


# ---- states ---------------------------------------------------------------------------------


@needs_ipv6
@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_events_by_way_of_a_relay(tmp_path, short_folder, both_families, host):
    keys = KeyFolder(tmp_path / "keys")
    keys.new("prod", "server")
    for name, role in (("viewer", Role.VIEWER), ("runner", Role.RUNNER)):
        keys.authorize(keys.new("prod", name).pair.public, name, role=role, environment="prod")

    def key(name):
        return ClientSecurity.load("prod", name=name, folder=keys.path)

    security = ServerSecurity.load("prod", folder=keys.path)
    relay = Relay(f"tcp://{host}:*", security=security)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        runner = key("runner")
        with (
            Publisher(folder=short_folder, relay=relay.endpoint, security=runner) as publisher,
            Subscription(relay.endpoint, environment="prod", security=key("viewer")) as events,
        ):
            made = make_event(1)
            made.environment = "prod"
            publisher.publish(made)
            assert events.recv(20.0).run_id == "run-1"
    finally:
        relay.stop()
        thread.join()
        security.close()


# ---- hubs and hosts -------------------------------------------------------------------------


@needs_ipv6
@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_hosts_join_and_take_data_from_each_other(
    start_remote, foremen, journal, tmp_path, both_families, host, insecure
):
    jobs = start_remote(url=f"tcp://{host}:*", insecure=insecure)
    options = ["--insecure"] if insecure else ["--data-endpoint", "tcp://[::]:*"]
    hosts = TwoHosts(jobs, foremen, journal, tmp_path, options=options)
    assert hosts.take(hosts.second, hosts.make(hosts.first))
    peers = [peer.endpoint for peer in jobs.hub._data._peers._serving.values()]
    if not insecure:
        at = jobs.hub.endpoint.rpartition(":")[0]
        assert all(peer.startswith(f"{at}:") for peer in peers)
    status = zfast(
        "status", jobs.hub.endpoint, *(["--insecure"] if insecure else ["--key", "viewer"])
    )
    assert status.returncode == 0, status.stderr
    assert jobs.hub._data._peers._apart == {}


@needs_ipv6
def test_a_data_endpoint_is_told_in_the_hubs_own_family(both_families, tmp_path):
    def told(hub, bound):
        return DataEndpoint(hub, True).as_seen_by_others(bound)

    assert DataEndpoint("tcp://[::1]:5", True).choose(tmp_path)[0] == "tcp://[::1]:*"
    assert DataEndpoint("tcp://localhost:5", True).choose(tmp_path)[0] == "tcp://127.0.0.1:*"
    assert told("tcp://[::1]:5", "tcp://[::]:7") == "tcp://[::1]:7"
    assert told("tcp://127.0.0.1:5", "tcp://[::]:7") == "tcp://127.0.0.1:7"
    assert told("tcp://127.0.0.1:5", "tcp://0.0.0.0:7") == "tcp://127.0.0.1:7"
    assert told("tcp://127.0.0.1:5", "tcp://[::1]:7") == "tcp://[::1]:7"
    with pytest.raises(ConfigError, match="over IPv6"):
        told("tcp://[::1]:5", "tcp://0.0.0.0:7")
