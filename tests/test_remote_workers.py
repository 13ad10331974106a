"""Workers of other hosts: real processes that join over loopback tcp, with CURVE keys."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from foremen import ZFAST, free_port, gone, importing_tests, joined, zfast
from hub_jobs import hang_once, only, settled, simple, wait_for_file
from network_hosts import hosts, ip
from zfast.addresses import as_told_to_others
from zfast.channel import Channel
from zfast.errors import ConfigError, TransportError, WorkerDiedError, WorkerError
from zfast.runner import remote_hosts
from zfast.runner.hub import Hub
from zfast.runner.hub_line import HubAddress
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.runner.status_client import ask_status
from zfast.security.client_security import ClientSecurity


def test_a_job_runs_on_another_host_with_its_notes_and_environment(start_remote, foremen, notes):
    jobs = start_remote()
    foremen.start(jobs.hub.endpoint)

    def work(argument, notify):
        for i in range(3):
            notify("topic", str(i).encode())
        return os.getppid(), os.environ["ZFAST_TEST"], argument

    parent, variable, argument = jobs.run(work, {"a": bytes(100_000)})
    assert parent == foremen.processes[0].pid
    assert (variable, argument) == ("yes", {"a": bytes(100_000)})
    assert notes == [("topic", b"0"), ("topic", b"1"), ("topic", b"2")]


def test_large_values_go_in_chunks_both_ways_and_on_to_a_local_worker(
    start_remote, foremen, tmp_path
):
    jobs = start_remote(max_workers=1)
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    array = np.arange(3_000_000)  # 24 MB: more than the window

    def work(array, _):
        return os.getppid(), array * 2

    results = [jobs.run(work, array)]
    with only(jobs, (), tmp_path):  # the remote one has something else to do
        results.append(jobs.run(work, array))
    assert all(np.array_equal(result, array * 2) for _, result in results)
    assert [parent for parent, _ in results] == [foremen.processes[0].pid, os.getpid()]


def test_a_worker_that_is_killed_is_replaced_and_its_job_run_again(start_remote, foremen, journal):
    jobs = start_remote()
    foremen.start(jobs.hub.endpoint)
    outcome = jobs.submit(hang_once, (journal, "k"))
    os.kill(journal.wait_for("k", "begin"), signal.SIGKILL)
    assert jobs.value(outcome) == 2


def test_a_job_that_kills_its_workers_is_given_up_with_the_cause(start_remote, foremen):
    jobs = start_remote(max_worker_deaths=2)
    foremen.start(jobs.hub.endpoint)

    def die(*_):
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        os._exit(7)

    with pytest.raises(WorkerDiedError, match=r"status 7.*(?s:.*)last words"):
        jobs.run(die)


def test_cuts_in_the_middle_of_messages_cost_no_attempt(start_remote, foremen, journal, network):
    jobs = start_remote()
    proxy = network(jobs.hub.endpoint)
    foremen.start(proxy.endpoint)
    joined(jobs)
    array = np.arange(1_000_000)

    def work(argument, _):
        journal, key, array = argument
        journal.note(key, "begin")
        return array + 1

    outcomes = [jobs.submit(work, (journal, f"k{i}", array)) for i in range(4)]
    for n in range(4):
        journal.wait_for(f"k{n}", "begin")
        proxy.cut_after(1_000_000)
    for outcome in outcomes:
        assert np.array_equal(jobs.value(outcome), array + 1)
    assert proxy.n_connections > 1
    for n in range(4):
        assert [attempt for *_, attempt, _ in journal.lines(f"k{n}", "begin")] == [1]


def test_a_partition_that_heals_within_the_lease_costs_no_attempt(
    start_remote, foremen, journal, tmp_path, network
):
    jobs = start_remote(lease_s=30.0)
    proxy = network(jobs.hub.endpoint)
    foremen.start(proxy.endpoint)
    gate = tmp_path / "gate"
    outcome = jobs.submit(wait_for_file, (journal, "k", gate))
    journal.wait_for("k", "begin")
    proxy.swallows = True
    gate.touch()
    journal.wait_for("k", "end")
    proxy.cut()
    proxy.swallows = False
    assert jobs.value(outcome) == "k"
    assert len(journal.lines("k", "begin")) == 1


def test_results_whose_receipts_are_lost_count_once(
    start_remote, foremen, journal, tmp_path, network
):
    jobs = start_remote(lease_s=30.0)
    proxy = network(jobs.hub.endpoint)
    foremen.start(proxy.endpoint)
    gate = tmp_path / "gate"
    outcome = jobs.submit(wait_for_file, (journal, "k", gate))
    journal.wait_for("k", "begin")
    proxy.is_one_way = True  # the hub hears its foreman, and is not heard
    gate.touch()
    assert jobs.value(outcome) == "k"
    proxy.is_one_way = False
    proxy.cut()  # what has no receipt is sent again
    assert jobs.run(simple, (journal, "after", 0)) == "after"
    assert proxy.n_connections > 1
    assert outcome.empty()
    assert len(journal.lines("k", "begin")) == 1


def test_a_slow_line_is_only_slow(start_remote, foremen, journal, network):
    jobs = start_remote(lease_s=30.0)
    proxy = network(jobs.hub.endpoint)
    foremen.start(proxy.endpoint)
    joined(jobs)
    proxy.pause_s = 0.05  # 1.3 MB/s, both ways together
    array = np.arange(100_000)

    def work(argument, _):
        journal, array = argument
        journal.note("k", "begin")
        return array + 1

    assert np.array_equal(jobs.run(work, (journal, array)), array + 1)
    assert len(journal.lines("k", "begin")) == 1


def test_a_partition_longer_than_the_lease_has_its_late_answer_fenced_off(
    start_remote, foremen, journal, tmp_path
):
    jobs = start_remote(lease_s=3.0)
    first = foremen.start(jobs.hub.endpoint)
    gate = tmp_path / "gate"
    outcome = jobs.submit(wait_for_file, (journal, "k", gate))
    journal.wait_for("k", "begin")
    first.send_signal(signal.SIGSTOP)  # its worker goes on, and nobody hears of it
    foremen.start(jobs.hub.endpoint)
    journal.wait_for("k", "begin", 2)
    gate.touch()
    assert jobs.value(outcome) == "k"
    first.send_signal(signal.SIGCONT)
    joined(jobs, 2)  # it has joined anew
    assert sorted(attempt for *_, attempt, _ in journal.lines("k", "begin")) == [1, 2]
    assert jobs.run(simple, (journal, "after", 0)) == "after"


def test_a_host_that_dies_has_its_jobs_run_elsewhere(start_remote, foremen, journal):
    jobs = start_remote(lease_s=3.0)
    first = foremen.start(jobs.hub.endpoint)
    outcome = jobs.submit(hang_once, (journal, "k"))
    worker = journal.wait_for("k", "begin")
    first.kill()
    foremen.start(jobs.hub.endpoint)
    assert jobs.value(outcome) == 2
    settled(lambda: gone(worker))  # it has ended with its foreman


def test_a_host_whose_key_is_revoked_is_dropped_at_once_and_its_jobs_run_elsewhere(
    start_remote, foremen, journal, security
):
    jobs = start_remote(lease_s=600.0)  # nobody waits for that
    first = foremen.start(jobs.hub.endpoint)
    outcome = jobs.submit(hang_once, (journal, "k"))
    journal.wait_for("k", "begin")
    first.send_signal(signal.SIGSTOP)  # it cannot say goodbye
    foremen.start(jobs.hub.endpoint, key="worker-2")
    joined(jobs, 2)
    security.revoke(ClientSecurity.load(name="worker-1").pair.public)
    assert jobs.value(outcome) == 2
    assert len(joined(jobs)) == 1
    first.send_signal(signal.SIGCONT)
    assert first.wait(30) == 1
    assert "refused our key" in first.log.read_text()


def test_a_drained_host_finishes_what_runs_and_leaves(start_remote, foremen, journal, tmp_path):
    jobs = start_remote()
    foreman = foremen.start(jobs.hub.endpoint)
    gate = tmp_path / "gate"
    outcome = jobs.submit(wait_for_file, (journal, "k", gate))
    journal.wait_for("k", "begin")
    foreman.terminate()
    settled(lambda: not any(worker.available for worker in jobs.hub._remote))
    gate.touch()
    assert jobs.value(outcome) == "k"
    assert foreman.wait(30) == 0
    assert [attempt for *_, attempt, _ in journal.lines("k", "begin")] == [1]


def test_one_foreman_serves_one_flow_run_after_another(start_remote, foremen):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = start_remote(url=endpoint)
    foreman = foremen.start(endpoint)
    assert first.run(lambda *_: os.getppid()) == foreman.pid
    first.hub.close()
    second = start_remote(url=endpoint)
    assert second.run(lambda *_: os.getppid()) == foreman.pid


def test_a_stranger_is_refused_and_told_what_to_do(start_remote, foremen):
    jobs = start_remote()
    stranger = foremen.start(jobs.hub.endpoint, key="stranger")
    assert stranger.wait(30) == 1
    told = stranger.log.read_text()
    assert "refused our key" in told
    assert "zfast keys authorize" in told
    watcher = foremen.start(jobs.hub.endpoint, key="viewer")  # may look, may not work
    assert watcher.wait(30) == 1
    assert "may not do that" in watcher.log.read_text()
    assert list(jobs.hub._remote) == []


def test_another_version_is_refused_by_name(start_remote, foremen):
    jobs = start_remote()
    jobs.hub._remote._welcome.versions["cloudpickle"] = "0.1"
    foreman = foremen.start(jobs.hub.endpoint)
    assert foreman.wait(30) == 1
    assert "cloudpickle" in foreman.log.read_text()


def test_an_endpoint_without_keys_or_in_use_is_refused(start_remote, security, tmp_path):
    def open_hub(url, security):
        Hub(
            Policy(1),
            executor="hub_executor:FunctionExecutor",
            environment={},
            on_note=lambda *_: None,
            remote=RemoteEndpoint(url, security),
        )

    with pytest.raises(ConfigError, match="zfast keys new server"):
        open_hub("tcp://0.0.0.0:*", None)
    taken = start_remote().hub.endpoint
    with pytest.raises(TransportError, match="port"):
        open_hub(taken, security)
    with Channel.bind(f"ipc://{tmp_path}/taken") as other:
        with pytest.raises(TransportError, match="does another flow run listen there"):
            open_hub(other.endpoint, None)
        with Channel.connect(other.endpoint) as tx:
            tx.send(1)
            assert other.recv(timeout=20) == 1


def test_who_waits_for_workers_says_what_they_connect_to(start_remote, monkeypatch, caplog):
    monkeypatch.setattr(remote_hosts, "LONELY_S", 0.0)
    jobs = start_remote(url="tcp://0.0.0.0:*")
    port = jobs.hub.endpoint.rpartition(":")[2]
    jobs.submit(len, "waits")
    assert settled(lambda: f"'zfast worker tcp://{socket.gethostname()}:{port}'" in caplog.text)


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ("tcp://0.0.0.0:5", "tcp://{}:5"),
        ("tcp://[::]:5", "tcp://{}:5"),
        ("tcp://*:5", "tcp://{}:5"),
        ("tcp://10.0.0.1:5", "tcp://10.0.0.1:5"),
        ("ipc:///tmp/hub", "ipc:///tmp/hub"),
    ],
)
def test_where_workers_are_told_to_join(bound, told):
    assert as_told_to_others(bound) == told.format(socket.gethostname())


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]"])
def test_where_to_listen_is_not_where_to_connect(key_folder, host):
    done = zfast("worker", f"tcp://{host}:5560", "--key", "worker-1")
    assert done.returncode == 1
    assert "not which host to connect to" in done.stderr
    assert "the flow's host" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_no_socket_can_connect_to_is_said(key_folder):
    done = zfast("worker", "tcp://a b:5560", "--key", "worker-1")
    assert done.returncode == 1
    assert "cannot connect to tcp://a b:5560" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_shows_workers_jobs_and_queue(start_remote, foremen, journal, tmp_path):
    jobs = start_remote()
    foremen.start(jobs.hub.endpoint)
    gate = tmp_path / "gate"
    outcomes = [jobs.submit(wait_for_file, (journal, key, gate)) for key in ("a", "b")]
    journal.wait_for("a", "begin")
    done = zfast("status", jobs.hub.endpoint, "--key", "viewer", "--json")
    assert done.returncode == 0, done.stderr
    (hub,) = json.loads(done.stdout)
    (worker,) = hub["workers"]
    assert (worker["state"], hub["running"], hub["queued"]) == ("busy", 1, 1)
    with pytest.raises(WorkerError, match="may not do that"):
        ask_status(HubAddress(jobs.hub.endpoint, ClientSecurity.load(name="worker-1")))
    gate.touch()
    assert [jobs.value(outcome) for outcome in outcomes] == ["a", "b"]


def test_a_flow_runs_on_another_host_and_its_logs_arrive_once(
    prefect_api, security, foremen, key_folder
):
    from prefect import flow, get_run_logger, tags, task
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.context import FlowRunContext

    from zfast import ZfastTaskRunner

    runner = ZfastTaskRunner(0, endpoint=f"tcp://127.0.0.1:{free_port()}", security=security)

    @task(retries=1, retry_delay_seconds=0)
    def add(a, b):
        from prefect.runtime import task_run

        get_run_logger().info("adding %s", a)
        if a == 2 and task_run.run_count == 1:
            raise ValueError("once")
        return a + b, os.getppid(), set(task_run.tags)

    @task
    async def total(items):
        return sum(item[0] for item in items)

    @flow(task_runner=runner)
    def work():
        with tags("remote"):
            added = add.map([1, 2, 3], b=10)
        result = total.submit(added).result()
        return result, [future.result() for future in added], FlowRunContext.get().flow_run.id

    foremen.start(runner._joining["endpoint"])
    result, added, flow_run_id = work()
    assert result == 36
    assert {parent for _, parent, _ in added} == {foremen.processes[0].pid}
    assert all(names == {"remote"} for *_, names in added)
    with get_client(sync_client=True) as client:

        def logged():
            logs = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), limit=200
            )
            found = sorted(log.message for log in logs if log.message.startswith("adding"))
            return found if len(found) >= 4 else None

        assert settled(logged) == ["adding 1", "adding 2", "adding 2", "adding 3"]


def test_workers_end_soon_after_their_driver_was_killed(foremen, key_folder, tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "worker")],
        env=importing_tests(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with driver:
        foremen.start(driver.stdout.readline().strip())
        settled(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text(), 30)
        driver.kill()
    settled(lambda: gone(int((tmp_path / "worker").read_text())), 15)


def test_a_line_between_hosts_that_is_cut_and_comes_back(key_folder, journal, tmp_path):
    gate = tmp_path / "gate"
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(hosts(1))
        (client,) = network.clients

        def start(host, *command):
            process = stack.enter_context(network.start(host, *command, **importing_tests()))
            stack.callback(process.kill)
            return process

        driver = start(network.server, "-c", NETWORK_DRIVER, str(journal.path), str(gate))
        port = driver.stdout.readline().strip().rpartition(":")[2]
        endpoint = f"tcp://{network.server_address(0)}:{port}"
        start(client, *ZFAST[1:], "worker", endpoint, "--workers", "1", "--key", "worker-1")
        journal.wait_for("k", "begin")
        ip("-n", client, "link", "set", "up0", "down")
        gate.touch()
        journal.wait_for("k", "end")  # and nobody can be told
        ip("-n", client, "link", "set", "up0", "up")
        assert driver.stdout.readline().strip() == "k"
    assert len(journal.lines("k", "begin")) == 1


NETWORK_DRIVER = """
import sys
from pathlib import Path
from hub_jobs import Journal, Jobs, wait_for_file
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.security.server_security import ServerSecurity

hub = Hub(
    Policy(0, lease_s=60.0),
    executor="hub_executor:FunctionExecutor",
    environment={},
    on_note=lambda *_: None,
    remote=RemoteEndpoint("tcp://0.0.0.0:*", ServerSecurity.load()),
)
print(hub.endpoint, flush=True)
print(Jobs(hub).run(wait_for_file, (Journal(sys.argv[1]), "k", Path(sys.argv[2]))), flush=True)
hub.close()
"""

DRIVER = """
import os, sys, time
from pathlib import Path
from hub_jobs import Jobs
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

def work(path, _):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)

jobs = Jobs(
    Hub(
        Policy(0),
        executor="hub_executor:FunctionExecutor",
        environment={},
        on_note=lambda *_: None,
        remote=RemoteEndpoint("tcp://127.0.0.1:*", ServerSecurity.load()),
    )
)
print(jobs.hub.endpoint, flush=True)
jobs.run(work, sys.argv[1])
"""
