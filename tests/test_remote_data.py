"""What a hub and its hosts let each other know of data, and what they must not."""

from __future__ import annotations

import gc
import os

import pytest
import zmq

from direct_jobs import is_right, numbers, pass_on, take
from foremen import joined
from hub_jobs import only, settled
from two_hosts import LARGE, TwoHosts
from zfast.codec import decode, encode
from zfast.errors import ProtocolError, ResultLostError
from zfast.runner.data_client import DataClient, DataPeer
from zfast.runner.data_endpoint import DataEndpoint
from zfast.runner.host_data import HostData
from zfast.runner.host_peers import HostPeers
from zfast.runner.protocol import Done
from zfast.runner.remote_data import RemoteData
from zfast.runner.remote_protocol import Lies, Peer, Peers, Serving, served_as
from zfast.runner.remote_worker import RemoteHost
from zfast.runner.session import Session
from zfast.security.curve_keys import KeyPair
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.segments import Lease

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
)


def test_data_comes_only_for_a_job_that_a_worker_waits_for(
    start_remote, foremen, journal, tmp_path
):
    jobs = start_remote(max_workers=1)
    hosts = TwoHosts(jobs, foremen, journal, tmp_path, options=["--data-endpoint", "none"])
    results = [hosts.make(hosts.first, seed) for seed in range(5)]
    data, most = jobs.hub._data, 0

    def bring_all(segments, done):
        nonlocal most
        RemoteData.bring_all(data, segments, done)
        most = max(most, data.n_coming)

    data.bring_all = bring_all
    with only(jobs, (), tmp_path):  # the hub's own worker alone
        outcomes = [
            jobs.submit(take(journal, f"t{seed}", seed, LARGE), result)
            for seed, result in enumerate(results)
        ]
        assert all(jobs.value(outcome) for outcome in outcomes)
    assert most == 1


@pytest.mark.parametrize("first_gone", ["whole", "half"])
def test_parts_of_one_publication_are_let_go_each_by_itself(
    start_remote, foremen, journal, tmp_path, first_gone
):
    hosts = TwoHosts(start_remote(), foremen, journal, tmp_path)
    jobs = hosts.jobs
    array = jobs.hub.handover.snapshot(encode(numbers(0, LARGE)))
    with only(jobs, [worker.pid for worker in jobs.hub._remote][:1], tmp_path):
        parts = {
            "whole": jobs.parcel(jobs.submit(lambda a, _: pass_on(a, _)["whole"], array)),
            "half": jobs.parcel(jobs.submit(lambda a, _: pass_on(a, _)["half"], array)),
        }
    del array, parts[first_gone]
    gc.collect()
    settled(lambda: len(jobs.hub._data._supplies._supplied) == 0)
    (left,) = parts.values()
    expected = numbers(0, LARGE)
    values = decode(left.open())
    assert (
        values == (expected if len(values) == len(expected) else expected[-len(values) :])
    ).all()


def test_what_is_let_go_and_sent_again_is_there(start_remote, foremen, journal):
    jobs = start_remote()
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    array = numbers(3, LARGE)
    for n in range(10):  # the last lease ends as the next begins
        parcel = jobs.hub.handover.snapshot(encode(array))
        first = jobs.submit(take(journal, f"a{n}", 3, LARGE), parcel)
        second = jobs.submit(take(journal, f"b{n}", 3, LARGE), parcel)
        del parcel
        assert jobs.value(first)
        assert jobs.value(second)


def test_at_a_data_endpoint_a_result_goes_by_a_name_that_its_descriptor_does_not_tell(
    start_remote, foremen, journal, short_folder, runtime_root
):
    jobs = start_remote(url=f"ipc://{short_folder}/hub", insecure=True)
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    result = jobs.parcel(jobs.submit(lambda *_: numbers(1, LARGE)))
    (lease,) = (part for part in result.parts if isinstance(part, Lease))
    (host,) = jobs.hub._remote.hosts
    (endpoint,) = runtime_root.glob("*/data.sock")
    poller, outcomes = zmq.Poller(), []
    client = DataClient(None, poller)
    name = served_as(host.session_id, lease.descriptor)
    for asked in (lease.descriptor, name):
        client.fetch(asked, DataPeer(f"ipc://{endpoint}", ""), outcomes.append)
    while len(outcomes) < 2:
        poller.poll(10)
        client.turn()
    client.close()
    refused, block = sorted(outcomes, key=lambda outcome: not isinstance(outcome, Exception))
    assert isinstance(refused, ResultLostError)
    assert bytes(block)[-8:] == numbers(1, LARGE)[-1:].tobytes()
    assert is_right(decode(result.open()), 1, LARGE)


# ---- hosts that say what is not so --------------------------------------------------------------


def descriptor(segment):
    return Descriptor(segment * 16, 1, 64, LARGE)


@pytest.fixture
def data():
    return RemoteData(lambda command: command(), lambda segment_id: segment_id == b"o" * 16)


@pytest.fixture
def host(data):
    def join(name):
        made = RemoteHost(name.encode() * 16, name.encode(), name, "", b"")
        data.join(made)
        return made

    return join


def done(*descriptors):
    header = memoryview(b"header")
    return Done((b"j" * 16, 1), [1 + len(descriptors)], [None, *descriptors]), [header]


def test_a_host_cannot_claim_memory_of_another_or_of_the_hub(data, host):
    honest, other = host("a"), host("b")
    kept = data.receive(honest, *done(descriptor(b"s")))
    for claimed in (descriptor(b"s"), descriptor(b"o")):
        with pytest.raises(ProtocolError, match="is not of b"):
            data.receive(other, *done(claimed))
    data.lose(other, "gone")
    assert data.remote_nbytes == LARGE
    assert not kept[0].is_lost
    data.lose(honest, "gone")
    assert kept[0].is_lost


@pytest.mark.parametrize(
    ("endpoint", "reached_from_elsewhere"),
    [
        ("tcp://10.0.0.1:5", True),
        ("tcp://127.0.0.1:5", False),
        ("tcp://[::1]:5", False),
        ("tcp://localhost:5", False),
        ("ipc:///tmp/x", False),
    ],
)
def test_a_data_endpoint_of_the_loopback_interface_is_for_its_own_machine(
    data, host, endpoint, reached_from_elsewhere
):
    here, beside, elsewhere = host("a:1"), host("a:2"), host("b:1")
    key = "" if endpoint.startswith("ipc:") else KeyPair.generate().public.z85
    peers = HostPeers()
    for serving in (here, beside, elsewhere):
        peers.serve(serving, Serving(endpoint, key), guarded=bool(key))
    assert peers.reaches(here, beside)
    assert peers.reaches(here, elsewhere) == reached_from_elsewhere
    assert peers.reaches(elsewhere, here) == reached_from_elsewhere


def test_a_data_endpoint_is_of_the_runs_kind_and_named_once(data, host):
    liar = host("a")
    for endpoint, key in (
        ("ipc:///tmp/x", ""),
        ("tcp://10.0.0.1:5", ""),
        ("tcp://10.0.0.1:5", "x" * 39),
        ("nonsense", ""),
    ):
        with pytest.raises(ProtocolError):
            data.serve(liar, Serving(endpoint, key), guarded=True)
    data.serve(liar, Serving("ipc:///tmp/x", ""), guarded=False)
    with pytest.raises(ProtocolError, match="second"):
        data.serve(liar, Serving("ipc:///tmp/y", ""), guarded=False)


# ---- what a host keeps in mind ------------------------------------------------------------------


@pytest.fixture
def host_data(tmp_path):
    poller = zmq.Poller()
    endpoint = DataEndpoint(f"ipc://{tmp_path}/hub", False, "none")
    made = HostData(Session(), b"s" * 16, poller, tmp_path, endpoint)
    made.poller = poller
    yield made
    made.close()


def test_where_something_could_not_be_had_is_forgotten(host_data):
    wanted, settlings = descriptor(b"w"), []
    nobody = Peer(b"p" * 16, "ipc://@nobody-listens-here", "")
    host_data.take(Peers([nobody]), [])
    host_data.take(Lies(wanted, b"p" * 16, descriptor(b"n")), [])
    for n in (1, 2):  # the second time it is not asked for any more
        host_data.want(wanted, lambda: settlings.append(host_data.find(wanted)))
        while len(settlings) < n:
            host_data.poller.poll(10)
            host_data.turn()
    assert settlings == [None, None]
    assert host_data._places == {}
