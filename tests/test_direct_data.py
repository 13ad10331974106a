"""Results of other hosts: they stay where they were made, and go straight to who needs them."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from direct_jobs import (
    MIB,
    is_right,
    make,
    make_many,
    n_publications,
    numbers,
    pass_on,
    take,
    take_passed_on,
)
from foremen import joined, lost, shared_nbytes, worker_pids
from hub_jobs import STORM_DEATHS, only, run_by, settled, wait_for_file
from network_hosts import switched_hosts
from network_hub import NetworkHub
from two_hosts import LARGE, TwoHosts
from zfast import arena, errors
from zfast.codec import decode, encode
from zfast.security.client_security import ClientSecurity

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
)

#: Travels with what is said, and outlives its host.
SMALL = MIB // 2
#: What everything that is not a result may take.
TALK = 2 * MIB


@pytest.fixture
def two_hosts(start_remote, foremen, journal, tmp_path):
    def start(n_workers=1, max_workers=0, environments=({}, {}), **policy):
        jobs = start_remote(max_workers, **policy)
        return TwoHosts(jobs, foremen, journal, tmp_path, n_workers, environments=environments)

    return start


@pytest.fixture
def gate(two_hosts, tmp_path):
    """What jobs wait for: there at the latest when hubs are closed, which wait for the jobs."""
    path = tmp_path / "gate"
    yield path
    path.touch()


# ---- where it goes -------------------------------------------------------------------------


def test_it_comes_right_to_a_job_of_another_host_and_of_its_own(two_hosts):
    hosts = two_hosts()
    result = hosts.make(hosts.first)
    assert hosts.take(hosts.second, result)
    assert hosts.take(hosts.first, result)
    assert hosts.n_begun("make-0") == 1


@pytest.mark.filterwarnings("ignore::zfast.addresses.InsecureEndpointWarning")
@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_it_comes_right_where_no_keys_guard_the_hub(
    start_remote, foremen, journal, tmp_path, short_folder, runtime_root, scheme
):
    url = "tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc://{short_folder}/hub"
    jobs = start_remote(url=url, insecure=True)
    options = ["--insecure"] if scheme == "tcp" else []
    hosts = TwoHosts(jobs, foremen, journal, tmp_path, options=options)
    assert hosts.take(hosts.second, hosts.make(hosts.first))
    assert len(list(runtime_root.glob("*/data.sock"))) == 2


@pytest.mark.parametrize("data_endpoint", ["none", "tcp://127.0.0.1:*", "tcp://0.0.0.0:*"])
def test_it_comes_right_from_where_the_host_says(
    start_remote, foremen, network, journal, tmp_path, data_endpoint
):
    jobs = start_remote()
    lines = [network(jobs.hub.endpoint) for _ in range(2)]
    first, second = (
        foremen.start(line.endpoint, "--data-endpoint", data_endpoint) for line in lines
    )
    joined(jobs, 2)
    workers = [worker_pids(jobs, foreman.pid) for foreman in (first, second)]
    result = run_by(jobs, workers[0], tmp_path, make, (journal, "made", 0, LARGE))
    check = take(journal, "taken", 0, LARGE)
    assert decode(run_by(jobs, workers[1], tmp_path, check, result).open())
    through_driver = all(line.passed_nbytes > LARGE for line in lines)
    assert through_driver == (data_endpoint == "none")


@pytest.mark.parametrize("n_workers", [1, 2])
def test_it_stays_on_its_host_for_jobs_there(start_remote, foremen, network, journal, n_workers):
    jobs = start_remote()
    line = network(jobs.hub.endpoint)
    foremen.start(line.endpoint, workers=n_workers)
    joined(jobs, n_workers)
    nbytes = 64 * MIB
    result = jobs.parcel(jobs.submit(make, (journal, "made", 0, nbytes)))
    check = take(journal, "taken", 0, nbytes)
    taken = [jobs.submit(check, result) for _ in range(4)]  # by each of the workers
    assert all(jobs.value(outcome) for outcome in taken)
    assert line.passed_nbytes < TALK
    assert is_right(decode(result.open()), 0, nbytes)
    assert line.passed_nbytes > nbytes  # the line is measured


def test_the_driver_fetches_what_it_reads_once(start_remote, foremen, network, journal):
    jobs = start_remote()
    line = network(jobs.hub.endpoint)
    foremen.start(line.endpoint)
    result = jobs.parcel(jobs.submit(make, (journal, "made", 7, LARGE)))
    joined(jobs)
    assert line.passed_nbytes < TALK
    values = [decode(result.open()) for _ in range(3)]
    assert all(is_right(value, 7, LARGE) for value in values)
    assert line.passed_nbytes < LARGE + TALK
    assert not values[0].flags.writeable


@pytest.mark.long
def test_many_threads_of_the_driver_read_it_at_once(two_hosts):
    hosts = two_hosts()
    results = [hosts.make(hosts.first, seed) for seed in range(3)]
    right = []

    def read():
        right.extend(is_right(decode(r.open()), seed, LARGE) for seed, r in enumerate(results))

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert right == [True] * 24


def test_a_local_worker_takes_it(two_hosts):
    hosts = two_hosts(max_workers=1)
    result = hosts.make(hosts.first)
    with only(hosts.jobs, (), hosts.folder):
        outcome = hosts.jobs.submit(
            lambda array, _: (os.getppid(), is_right(array, 0, LARGE)), result
        )
        assert hosts.jobs.value(outcome) == (os.getpid(), True)


@pytest.mark.long
def test_a_result_of_a_local_worker_goes_to_other_hosts_as_ever(
    start_remote, foremen, journal, tmp_path
):
    jobs = start_remote(max_workers=1)
    result = jobs.parcel(jobs.submit(make, (journal, "made", 3, LARGE)))  # nobody has joined
    foreman = foremen.start(jobs.hub.endpoint)
    settled(lambda: len(worker_pids(jobs, foreman.pid)) == 1)
    joined(jobs)
    workers = worker_pids(jobs, foreman.pid)
    check = take(journal, "taken", 3, LARGE)
    assert decode(run_by(jobs, workers, tmp_path, check, result).open())
    # And back: the driver's own memory, which it has fetched.
    back = run_by(jobs, workers, tmp_path, pass_on, result)
    assert is_right(decode(back.open())["whole"], 3, LARGE)


def test_what_lies_on_the_hubs_host_is_sent_to_another_once(
    start_remote, foremen, network, journal
):
    jobs = start_remote()
    line = network(jobs.hub.endpoint)
    foreman = foremen.start(line.endpoint, workers=2)
    joined(jobs, 2)
    array = jobs.hub.handover.snapshot(encode(numbers(0, LARGE)))
    outcomes = [jobs.submit(take(journal, "taken", 0, LARGE), array) for _ in range(6)]
    assert all(jobs.value(outcome) for outcome in outcomes)
    assert LARGE < line.passed_nbytes < LARGE + TALK
    for seed in range(1, 12):  # it is kept no longer than it is needed
        array = jobs.hub.handover.snapshot(encode(numbers(seed, LARGE)))
        assert jobs.run(take(journal, "taken", seed, LARGE), array)
    assert LARGE <= shared_nbytes(foreman.pid) <= 4 * LARGE
    del array, outcomes
    settled(lambda: jobs.hub.leases.leased_nbytes == 0)


@pytest.mark.long
def test_what_the_driver_has_read_goes_on_to_workers(two_hosts):
    hosts = two_hosts()
    results = [hosts.make(host, seed) for seed, host in enumerate([hosts.first, hosts.second])]
    values = [decode(result.open()) for result in results]
    del results
    for host in (hosts.first, hosts.second):
        both = hosts.jobs.hub.handover.snapshot(encode(values))
        assert hosts.run(
            host,
            lambda arrays, _: [is_right(array, seed, LARGE) for seed, array in enumerate(arrays)],
            both,
        ) == [True, True]


def test_a_result_of_a_local_worker_is_sent_to_another_host_once(
    start_remote, foremen, network, journal
):
    jobs = start_remote(max_workers=1)
    result = jobs.parcel(jobs.submit(make, (journal, "made", 3, LARGE)))  # nobody has joined
    line = network(jobs.hub.endpoint)
    foreman = foremen.start(line.endpoint, workers=2)
    joined(jobs, 2)
    with only(jobs, worker_pids(jobs, foreman.pid), journal.path.parent):
        taken = [jobs.submit(take(journal, "taken", 3, LARGE), result) for _ in range(4)]
        assert all(jobs.value(outcome) for outcome in taken)
    assert LARGE < line.passed_nbytes < 1.5 * LARGE


@pytest.mark.long
@pytest.mark.parametrize("n_parts", [3, 200])
def test_a_result_of_many_parts_comes_right(two_hosts, n_parts):
    hosts = two_hosts()
    sizes = [MIB + 8 * (n % 3 - 1) if n % 2 else 8 * n for n in range(n_parts)]
    workers = worker_pids(hosts.jobs, hosts.first.pid)
    result = run_by(hosts.jobs, workers, hosts.folder, make_many, (5, sizes))

    def check(arrays, _):
        return [is_right(array, 5 + n, sizes[n]) for n, array in enumerate(arrays)]

    assert hosts.run(hosts.second, check, result) == [True] * n_parts
    assert check(decode(result.open()), None) == [True] * n_parts


@pytest.mark.parametrize("who", ["makes it", "takes it"])
def test_a_host_that_has_no_room_for_it_does_without(two_hosts, who):
    short, ample = {"ZFAST_ARENA_NBYTES": str(LARGE // 2)}, {}
    hosts = two_hosts(environments=(short, ample) if who == "makes it" else (ample, short))
    result = hosts.make(hosts.first)
    assert hosts.take(hosts.second, result)
    assert hosts.take(hosts.first, result)
    assert is_right(decode(result.open()), 0, LARGE)
    assert hosts.n_begun("make-0") == 1


@pytest.mark.long
def test_it_is_passed_on_by_its_own_host_and_by_another(two_hosts):
    hosts = two_hosts()
    for seed, (maker, passer, taker) in enumerate(
        [
            (hosts.first, hosts.first, hosts.second),
            (hosts.first, hosts.second, hosts.first),
            (hosts.first, hosts.second, hosts.second),
        ]
    ):
        made = hosts.make(maker, seed)
        passed = run_by(
            hosts.jobs, worker_pids(hosts.jobs, passer.pid), hosts.folder, pass_on, made
        )
        del made  # the original is let go; what was passed on is not
        gc.collect()
        assert hosts.run(taker, take_passed_on(seed, LARGE), passed)
        value = decode(passed.open())
        assert is_right(value["whole"], seed, LARGE)
        assert np.array_equal(value["half"], value["whole"][LARGE // 16 :])


@pytest.mark.long
def test_what_was_passed_on_outlives_the_host_that_made_it(two_hosts):
    hosts = two_hosts(lease_s=3.0)
    made = hosts.make(hosts.first)
    workers = worker_pids(hosts.jobs, hosts.second.pid)
    passed = run_by(hosts.jobs, workers, hosts.folder, pass_on, made)
    hosts.first.kill()
    lost(hosts.jobs, hosts.first.pid)
    assert hosts.run(hosts.second, take_passed_on(0, LARGE), passed)
    assert is_right(decode(passed.open())["whole"], 0, LARGE)


# ---- how long it lasts ---------------------------------------------------------------------


@pytest.mark.long
def test_it_outlives_the_worker_that_made_it(two_hosts):
    hosts = two_hosts()
    result = hosts.make(hosts.first)
    (worker,) = worker_pids(hosts.jobs, hosts.first.pid)
    os.kill(worker, signal.SIGKILL)
    settled(lambda: worker_pids(hosts.jobs, hosts.first.pid) not in ({worker}, set()))
    joined(hosts.jobs, 2)
    assert hosts.take(hosts.second, result)
    assert hosts.take(hosts.first, result)
    assert is_right(decode(result.open()), 0, LARGE)
    assert hosts.n_begun("make-0") == 1


def test_a_small_one_outlives_its_host(two_hosts):
    hosts = two_hosts(lease_s=3.0)
    result = hosts.make(hosts.first, nbytes=SMALL)
    hosts.first.kill()
    lost(hosts.jobs, hosts.first.pid)
    assert hosts.take(hosts.second, result, nbytes=SMALL)
    assert is_right(decode(result.open()), 0, SMALL)
    assert hosts.n_begun("make-0") == 1


@pytest.mark.long
def test_what_the_driver_has_fetched_outlives_its_host(two_hosts):
    hosts = two_hosts(lease_s=3.0)
    result = hosts.make(hosts.first)
    value = decode(result.open())
    hosts.first.kill()
    lost(hosts.jobs, hosts.first.pid)
    assert is_right(value, 0, LARGE)


def test_a_host_is_drained_and_its_results_stay(two_hosts):
    hosts = two_hosts()
    results = [hosts.make(hosts.first, seed) for seed in range(3)]
    hosts.first.terminate()
    assert hosts.first.wait(30) == 0, hosts.first.log.read_text()
    lost(hosts.jobs, hosts.first.pid)
    for seed, result in enumerate(results):
        assert hosts.take(hosts.second, result, seed)
        assert is_right(decode(result.open()), seed, LARGE)
        assert hosts.n_begun(f"make-{seed}") == 1


def test_they_are_read_after_the_hub_was_closed(two_hosts):
    hosts = two_hosts()
    results = [hosts.make(host, seed) for seed, host in enumerate([hosts.first, hosts.second])]
    hosts.jobs.hub.close()
    for foreman in (hosts.first, hosts.second):
        foreman.kill()
    for seed, result in enumerate(results):
        assert is_right(decode(result.open()), seed, LARGE)


# ---- when its host is lost -----------------------------------------------------------------


def test_who_needs_a_lost_result_is_told_and_others_go_on(two_hosts, gate):
    hosts = two_hosts(n_workers=2, lease_s=3.0)
    jobs = hosts.jobs
    missing, there = hosts.make(hosts.first, 0), hosts.make(hosts.second, 1)
    with only(jobs, worker_pids(jobs, hosts.second.pid), hosts.folder):
        running = jobs.submit(wait_for_file, (hosts.journal, "running", gate))
        hosts.journal.wait_for("running", "begin")
    hosts.first.kill()
    lost(jobs, hosts.first.pid)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(errors.ResultLostError, match=str(hosts.first.pid)):
            jobs.value(jobs.submit(take(hosts.journal, "never", 0, LARGE), missing))
        with pytest.raises(errors.ResultLostError, match=str(hosts.first.pid)):
            missing.open()
    assert time.monotonic() - began < 5
    assert issubclass(errors.ResultLostError, errors.WorkerError)
    assert hosts.n_begun("never") == 0
    assert jobs.value(jobs.submit(take(hosts.journal, "taken", 1, LARGE), there))
    gate.touch()
    assert jobs.value(running) == "running"
    assert hosts.n_begun("running") == 1


@pytest.mark.long
def test_who_asks_before_the_host_counts_as_lost_is_told_then(two_hosts):
    hosts = two_hosts(lease_s=3.0)
    result = hosts.make(hosts.first)
    hosts.first.kill()
    began = time.monotonic()
    outcomes = [
        hosts.jobs.submit(take(hosts.journal, f"never-{n}", 0, LARGE), result) for n in range(4)
    ]
    for outcome in outcomes:
        with pytest.raises(errors.ResultLostError):
            hosts.jobs.value(outcome)
    assert time.monotonic() - began < 10
    assert sum(hosts.n_begun(f"never-{n}") for n in range(4)) == 0


@pytest.mark.long
def test_who_runs_on_what_is_lost_with_its_host_is_told(two_hosts, gate, journal):
    hosts = two_hosts(lease_s=3.0)
    result = hosts.make(hosts.first)

    def hold(array, _):
        return wait_for_file((journal, "held", gate), None), array[0]

    with only(hosts.jobs, worker_pids(hosts.jobs, hosts.first.pid), hosts.folder):
        outcome = hosts.jobs.submit(hold, result)
        journal.wait_for("held", "begin")
    hosts.first.kill()
    gate.touch()
    with pytest.raises(errors.ResultLostError):
        hosts.jobs.value(outcome)
    assert hosts.n_begun("held") == 1


@pytest.mark.long
@pytest.mark.parametrize("who", ["the driver", "a worker"])
def test_who_waits_for_bytes_of_a_host_that_hangs_is_told_when_it_counts_as_lost(two_hosts, who):
    hosts = two_hosts(lease_s=3.0)
    result, told = hosts.make(hosts.first), []

    def read():
        try:
            told.append(result.open())
        except errors.ZfastError as error:
            told.append(error)

    with only(hosts.jobs, worker_pids(hosts.jobs, hosts.second.pid), hosts.folder):
        hosts.first.send_signal(signal.SIGSTOP)  # nobody is told that it is gone
        if who == "the driver":
            reader = threading.Thread(target=read)
            reader.start()
            reader.join(20)
        else:
            outcome = hosts.jobs.submit(take(hosts.journal, "never", 0, LARGE), result)
            told.append(outcome.get(timeout=20))
    assert [type(error) for error in told] == [errors.ResultLostError]
    assert hosts.n_begun("never") == 0
    hosts.first.send_signal(signal.SIGCONT)
    joined(hosts.jobs, 2)  # it has joined anew; what it had is lost all the same
    with pytest.raises(errors.ResultLostError):
        result.open()
    assert hosts.take(hosts.first, hosts.make(hosts.first, 1), 1)


def test_what_a_host_has_whose_key_is_revoked_is_lost(two_hosts, security):
    hosts = two_hosts(lease_s=600.0)
    result = hosts.make(hosts.first)
    security.revoke(ClientSecurity.load(name="worker-1").pair.public)
    lost(hosts.jobs, hosts.first.pid)
    with pytest.raises(errors.ResultLostError):
        hosts.take(hosts.second, result)
    with pytest.raises(errors.ResultLostError):
        result.open()


@pytest.mark.long
def test_what_a_host_has_that_is_told_to_end_at_once_is_lost_or_brought(two_hosts):
    hosts = two_hosts()
    results = [hosts.make(hosts.first, seed) for seed in range(8)]
    hosts.first.terminate()
    hosts.first.terminate()
    hosts.first.wait(30)
    for seed, result in enumerate(results):
        try:
            assert is_right(decode(result.open()), seed, LARGE)
        except errors.ResultLostError:
            with pytest.raises(errors.ResultLostError):
                hosts.take(hosts.second, result, seed)
        else:
            assert hosts.take(hosts.second, result, seed)


def test_after_a_hub_was_aborted_nobody_waits_for_it(two_hosts):
    hosts = two_hosts()
    result, read = hosts.make(hosts.first), hosts.make(hosts.first, 1)
    value = decode(read.open())
    hosts.jobs.hub.abort()
    with pytest.raises(errors.ResultLostError):
        result.open()
    assert is_right(value, 1, LARGE)
    assert is_right(decode(read.open()), 1, LARGE)


# ---- when nobody needs it any more ---------------------------------------------------------


def test_its_memory_is_free_again_when_nobody_needs_it(two_hosts):
    hosts = two_hosts()
    result = hosts.make(hosts.first)
    assert hosts.run(hosts.first, n_publications) == 1
    assert hosts.take(hosts.second, result)
    value = decode(result.open())
    del result
    gc.collect()
    settled(lambda: hosts.run(hosts.first, n_publications) == 0)
    assert is_right(value, 0, LARGE)  # fetched: it is the driver's own
    del value
    gc.collect()
    settled(lambda: hosts.jobs.hub.leases.leased_nbytes == 0)
    settled(lambda: arena.statistics().n_publications == 0)


@pytest.mark.long
def test_copies_on_other_hosts_go_with_what_they_are_copies_of(two_hosts):
    hosts = two_hosts()
    for seed in range(24):
        assert hosts.take(hosts.second, hosts.make(hosts.first, seed), seed)
    assert LARGE <= shared_nbytes(hosts.second.pid) <= 8 * LARGE


@pytest.mark.long
def test_jobs_that_share_an_input_share_its_copy(two_hosts):
    hosts = two_hosts(n_workers=2)
    nbytes = 80 * MIB  # more than a segment: each copy has one of its own
    result = hosts.make(hosts.first, nbytes=nbytes)
    for _ in range(4):
        assert hosts.take(hosts.second, result, nbytes=nbytes)
    assert nbytes <= shared_nbytes(hosts.second.pid) < 1.5 * nbytes


@pytest.mark.long
def test_hundreds_of_results_with_workers_killed_leave_nothing_behind(two_hosts):
    hosts = two_hosts(max_worker_deaths=STORM_DEATHS)
    jobs, chance, nbytes = hosts.jobs, random.Random(1), 2 * MIB

    def one(seed):
        result = jobs.parcel(jobs.submit(make, (hosts.journal, f"make-{seed}", seed, nbytes)))
        # Two at once: each host has one worker, so one of them takes it to the other.
        taken = [jobs.submit(take(hosts.journal, f"t-{seed}", seed, nbytes), result) for _ in "12"]
        if seed % 25 == 24:
            os.kill(chance.choice(joined(jobs, 2)).pid, signal.SIGKILL)
        assert [jobs.value(outcome) for outcome in taken] == [True, True]
        if seed % 10 == 0:
            assert is_right(decode(result.open()), seed, nbytes)

    def held():
        foremen = (hosts.first.pid, hosts.second.pid)
        pids = [*foremen, *(worker.pid for worker in joined(jobs, 2))]
        n_files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in foremen)
        return shared_nbytes(*pids), n_files

    for seed in range(100):
        one(seed)
    nbytes_before, n_files_before = held()
    for seed in range(100, 500):
        one(seed)
    nbytes_after, n_files_after = held()
    assert nbytes_after <= nbytes_before + 16 * nbytes
    assert n_files_after <= n_files_before + 8
    gc.collect()
    settled(lambda: jobs.hub.leases.leased_nbytes == 0)
    settled(lambda: arena.statistics().n_publications == 0)


# ---- between hosts that share nothing but the network --------------------------------------


@pytest.fixture
def network_hub(key_folder, tmp_path):
    """Makes a hub on a host of its own; its clients join from theirs, over a switch."""
    with contextlib.ExitStack() as stack:

        def start(n_clients, **policy):
            network = stack.enter_context(switched_hosts(n_clients))
            return stack.enter_context(NetworkHub(network, tmp_path, **policy))

        yield start


def test_it_goes_from_host_to_host_and_not_over_the_drivers_line(network_hub, journal):
    hub, nbytes = network_hub(2), 64 * MIB
    network, (first, second) = hub.network, hub.network.clients
    hub.join(first)
    hub.join(second, workers=2)
    before = {host: network.passed_nbytes(host) for host in (network.server, first)}
    hub.make(first, journal, "made", 0, nbytes)
    for name in (second, second, first):
        assert hub.take(name, journal, "taken", 0, nbytes)
    assert network.passed_nbytes(network.server) - before[network.server] < 2 * TALK
    # Once for both workers that took it there.
    assert nbytes < network.passed_nbytes(first) - before[first] < nbytes * 1.25
    assert hub.read(0, nbytes)
    assert network.passed_nbytes(network.server) - before[network.server] > nbytes
    assert len(journal.lines("made", "begin")) == 1


@pytest.mark.parametrize(
    "how", ["the line between them", pytest.param("the line of one", marks=pytest.mark.long)]
)
def test_a_line_is_cut_in_the_middle_of_a_transfer_and_heals(network_hub, journal, how):
    hub, nbytes = network_hub(2), 64 * MIB
    network, (first, second) = hub.network, hub.network.clients
    hub.join(first)
    hub.join(second)
    hub.make(first, journal, "made", 0, nbytes)
    network.slow(first, 200)  # 64 MiB take 2.7 s
    before = network.passed_nbytes(second)
    with hub.taking(second, journal, "taken", 0, nbytes) as taken:
        settled(lambda: network.passed_nbytes(second) - before > nbytes / 8)
        if how == "the line of one":
            network.unplug(second)
        else:
            network.part(first, second)
        assert network.passed_nbytes(second) - before < nbytes * 0.75
        time.sleep(1)  # longer than TCP waits for an answer
        if how == "the line of one":
            network.plug(second)
        else:
            network.unite(first, second)
        assert taken()
    for key in ("made", "taken"):
        assert [attempt for *_, attempt, _ in journal.lines(key, "begin")] == [1]


@pytest.mark.long
def test_hosts_that_cannot_reach_each_other_share_through_the_driver(network_hub, journal):
    hub, nbytes = network_hub(2), 16 * MIB
    network, (first, second) = hub.network, hub.network.clients
    network.part(first, second)
    hub.join(first)
    hub.join(second)
    before = network.passed_nbytes(network.server)
    hub.make(first, journal, "made", 0, nbytes)
    assert hub.take(second, journal, "taken", 0, nbytes)
    assert network.passed_nbytes(network.server) - before > 2 * nbytes
    for key in ("made", "taken"):
        assert [attempt for *_, attempt, _ in journal.lines(key, "begin")] == [1]


def test_a_host_that_is_cut_off_for_good_takes_its_results_with_it(network_hub, journal):
    hub = network_hub(2, lease_s=2.0)
    network, (first, second) = hub.network, hub.network.clients
    hub.join(first)
    hub.join(second)
    hub.make(first, journal, "made", 0, LARGE)
    network.unplug(first)
    hub.lost(first)
    with pytest.raises(errors.ResultLostError):
        hub.take(second, journal, "taken", 0, LARGE)
    assert journal.lines("taken", "begin") == []


@pytest.mark.long
@pytest.mark.parametrize("who", ["sends", "takes"])
def test_a_host_dies_in_the_middle_of_a_transfer(network_hub, journal, who):
    hub, nbytes = network_hub(2, lease_s=2.0), 64 * MIB
    network, (first, second) = hub.network, hub.network.clients
    hub.join(first)
    hub.join(second)
    hub.make(first, journal, "made", 0, nbytes)
    network.slow(first, 100)
    before = network.passed_nbytes(second)
    with hub.taking(second, journal, "taken", 0, nbytes) as taken:
        settled(lambda: network.passed_nbytes(second) - before > nbytes / 8)
        hub.kill(first if who == "sends" else second)
        if who == "sends":
            with pytest.raises(errors.ResultLostError):
                taken()
        else:
            assert taken()  # to the first host's own worker
    assert len(journal.lines("taken", "begin")) == (who == "takes")
