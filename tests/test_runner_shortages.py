"""Workers that cannot be started, memory that cannot be shared: what else there is goes on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cloudpickle
import numpy as np
import psutil
import pytest
import zmq

from foremen import TESTS, gone, joined, worker_pids
from hub_jobs import no_descriptors, settled, simple, wait_for_file
from zfast.errors import ProtocolError
from zfast.runner import failed_starts, remote_hosts
from zfast.runner.failed_starts import MAX_PAUSE_S, FailedStarts
from zfast.runner.foreman import Foreman
from zfast.runner.hub_line import HubAddress
from zfast.runner.last_words import StandardErrors
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.pool import WorkerPool
from zfast.runner.status_client import ask_all
from zfast.runner.worker_process import WorkerProcess

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")


# ---- starts -----------------------------------------------------------------------------------


def test_workers_that_can_be_started_work_where_others_cannot(start_hub, journal, monkeypatch):
    start, started = WorkerPool.start_worker, []

    def only_once(pool):
        if started:
            no_descriptors()
        started.append(True)
        return start(pool)

    monkeypatch.setattr(WorkerPool, "start_worker", only_once)
    jobs = start_hub(max_workers=4, spares=0)
    outcomes = [jobs.submit(simple, (journal, f"j{i}", 0)) for i in range(8)]
    assert [jobs.value(outcome) for outcome in outcomes] == [f"j{i}" for i in range(8)]


def test_what_could_not_be_had_may_be_had_later(start_remote, foremen, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "start_worker", no_descriptors)
        jobs = start_remote(max_workers=1, spares=0)
        with pytest.raises(Exception, match="Too many open files"):
            jobs.run(lambda *_: None)
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    assert jobs.run(lambda *_: os.getppid()) == foremen.processes[0].pid


def test_the_pause_after_failed_starts_has_an_end():
    failed, pauses_s = FailedStarts(), []
    for n in (0, 1, 100_000):
        failed.n = n
        failed.add()
        pauses_s.append(failed.next_start - time.monotonic())
    assert 0 < pauses_s[0] < pauses_s[1] < pauses_s[2] <= MAX_PAUSE_S


def test_a_foreman_with_a_worker_that_cannot_be_started_keeps_the_others(
    start_remote, journal, tmp_path, short_folder, monkeypatch, caplog
):
    def one_licence(path):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))

    monkeypatch.setattr(failed_starts, "MAX_FAILURES", 1)
    licence = str(tmp_path / "licence")
    jobs = start_remote(
        initializer=cloudpickle.dumps((one_licence, (licence,))),
        url=f"ipc://{short_folder}/hub",
    )
    address = HubAddress(jobs.hub.endpoint)
    foreman = Foreman(address, 2, lambda _: None, data_endpoint="none")
    serving = threading.Thread(target=foreman.run)
    serving.start()
    try:
        gate = tmp_path / "gate"
        running = jobs.submit(wait_for_file, (journal, "long", gate))
        journal.wait_for("long", "begin")
        settled(lambda: "the other workers go on" in caplog.text)
        gate.touch()
        assert jobs.value(running) == "long"
    finally:
        gate.touch()
        foreman.leave()
        serving.join(20)
    assert not serving.is_alive()
    assert len(journal.lines("long", "begin")) == 1


@pytest.mark.parametrize("failing", ["take_in", "Popen", "pipe"])
def test_a_start_that_fails_leaves_no_descriptor(start_hub, monkeypatch, failing):
    jobs = start_hub(max_workers=1, spares=0)
    jobs.run(lambda *_: None)
    config = jobs.hub._pool._config
    errors = StandardErrors()
    if failing == "take_in":

        def no_thread(_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_thread)
    elif failing == "Popen":
        monkeypatch.setattr(subprocess, "Popen", no_descriptors)
    else:
        pipe, made = os.pipe, []

        def one_pipe():
            if made:
                no_descriptors()
            made.append(True)
            return pipe()

        monkeypatch.setattr(os, "pipe", one_pipe)
    process = psutil.Process()
    gc.collect()
    before, children = process.num_fds(), set(process.children())
    for _ in range(3):
        with pytest.raises(OSError, match=r"new thread|open files"):
            WorkerProcess.start(config, b"worker-x", lambda *_: None, errors, 0.0)
    assert process.num_fds() <= before
    assert set(process.children()) <= children


# ---- ends -------------------------------------------------------------------------------------


def start_a_command(path, _):
    """Begin a command of the system, and wait for it, for ever."""
    process = subprocess.Popen(["sleep", "600"])
    path.with_suffix(".new").write_text(str(process.pid))
    path.with_suffix(".new").rename(path)
    process.wait()


def test_what_a_task_has_started_ends_with_a_worker_that_is_killed(start_hub, tmp_path):
    jobs = start_hub(max_workers=1, spares=0)
    jobs.submit(start_a_command, tmp_path / "pid")
    settled((tmp_path / "pid").exists)
    command = int((tmp_path / "pid").read_text())
    jobs.hub.abort()
    settled(lambda: gone(command))


DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import hub_jobs
    from test_runner_shortages import start_a_command
    from zfast.runner.hub import Hub
    from zfast.runner.policy import Policy
    hub = Hub(Policy(max_workers=1), executor="hub_executor:FunctionExecutor", environment={{}},
              on_note=lambda *_: None)
    hub_jobs.Jobs(hub).submit(start_a_command, Path({pid!r})).get()
"""


def test_what_a_task_has_started_ends_with_the_driver(runtime_root, tmp_path):
    code = textwrap.dedent(DRIVER.format(tests=str(TESTS), pid=str(tmp_path / "pid")))
    driver = subprocess.Popen([sys.executable, "-c", code])
    settled((tmp_path / "pid").exists, 30)
    command = int((tmp_path / "pid").read_text())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    settled(lambda: gone(command))
    settled(lambda: not list(runtime_root.iterdir()))


def test_a_pid_that_was_given_again_is_the_new_workers():
    desk = LeaseDesk(lambda command: command(), shared=True)
    desk.admit(b"old", 7)
    desk.admit(b"new", 7)
    desk.end_worker(b"old", 7)
    with pytest.raises(ProtocolError, match="no lease"):  # not that it is no worker
        desk.lend_segment(7, b"s" * 16)


def test_what_the_only_other_host_had_runs_here_as_soon_as_it_may_not(
    start_remote, foremen, journal, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote_hosts, "LOOK_EVERY_S", 3600.0)
    jobs = start_remote(max_workers=1, spares=0, lease_s=36_000.0)
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    gates = {name: tmp_path / name for name in ("there", "here")}
    try:
        outcomes = {}
        for name, gate in gates.items():  # a worker of this host is started for the second
            outcomes[name] = jobs.submit(wait_for_file, (journal, name, gate))
            pids = worker_pids(jobs, foremen.processes[0].pid)
            assert (journal.wait_for(name, "begin") in pids) is (name == "there")
        gates["here"].touch()
        assert jobs.value(outcomes["here"]) == "here"
        # From now on nothing but what becomes of the host wakes the hub.
        foremen.processes[0].send_signal(signal.SIGSTOP)
        jobs.hub._remote._socket.may = lambda *_: False
        journal.wait_for("there", "begin", n=2)
    finally:
        foremen.processes[0].send_signal(signal.SIGCONT)
        for gate in gates.values():
            gate.touch()
    assert jobs.value(outcomes["there"]) == "there"


# ---- memory -----------------------------------------------------------------------------------


def total(values, _):
    return float(values.sum())


def test_what_cannot_be_shared_is_sent(start_hub, monkeypatch, caplog):
    values = np.ones(1 << 20)
    jobs = start_hub(max_workers=1, spares=0)
    with monkeypatch.context() as patch:
        patch.setattr(jobs.hub._desk, "add_segment", no_descriptors)
        assert jobs.run(total, values) == values.size
    assert "are sent, not shared: [Errno 24]" in caplog.text
    assert jobs.run(total, values) == values.size


# ---- other hosts ------------------------------------------------------------------------------


def test_a_flow_without_workers_of_its_own_is_shown(start_remote, foremen, caplog):
    jobs, failures = start_remote(max_workers=0), []
    (before,) = settled(lambda: ask_all(failures.append))
    assert before.endpoint == jobs.hub.endpoint
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    (status,) = ask_all(failures.append)
    assert len(status.hosts) == 1
    assert failures == []


def test_strangers_at_a_foremans_socket_are_ignored(start_remote, foremen, runtime_root):
    jobs = start_remote(max_workers=0)
    foremen.start(jobs.hub.endpoint)
    joined(jobs)
    (folder,) = runtime_root.glob("zfast-worker-*")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(f"ipc://{folder}/hub.sock")
        stranger.send_multipart([b"", b"what is this?"])
        settled(lambda: "message dropped" in foremen.processes[0].log.read_text())
        assert jobs.run(lambda *_: os.getppid()) == foremen.processes[0].pid
