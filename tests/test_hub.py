"""The hub and its worker processes, without Prefect: deaths, strangers, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import zmq

from hub_jobs import appeared, meet, settled, wait_for_file
from zfast.codec import decode
from zfast.errors import ConfigError, WorkerDiedError
from zfast.runner.hub import Hub
from zfast.runner.job import Blob, JobCancelledError, JobFailedError
from zfast.runner.policy import Policy

TESTS = Path(__file__).parent


@pytest.fixture
def jobs(start_hub):
    return start_hub()


def gone(pids, paths, timeout=5.0):
    """Whether processes and paths are gone within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(_runs(pid) for pid in pids) and not any(Path(p).exists() for p in paths):
            return True
        time.sleep(0.02)
    return False


def _runs(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_job_runs_in_a_worker_with_its_environment(jobs, notes):
    def work(argument, notify):
        notify("topic", b"note")
        return os.getpid(), os.environ["ZFAST_TEST"], argument

    pid, variable, argument = jobs.run(work, {"a": bytes(100_000)})
    assert pid in jobs.hub.worker_pids
    assert variable == "yes"
    assert argument == {"a": bytes(100_000)}
    assert notes == [("topic", b"note")]


def test_workers_are_started_as_needed_and_kept(jobs, tmp_path):
    pids = {jobs.run(lambda *_: os.getpid()) for _ in range(5)}
    assert len(pids) == 1
    outcomes = [jobs.submit(meet, tmp_path) for _ in range(6)]
    assert len({jobs.value(outcome) for outcome in outcomes}) == 2


def test_a_worker_keeps_little_of_the_contexts_that_it_had(start_hub, monkeypatch):
    monkeypatch.setattr("zfast.runner.worker_handle.MAX_IDLE_BLOB_NBYTES", 4 << 20)
    jobs = start_hub(max_workers=1, spares=0)
    kept_nbytes = []
    for i in range(12):
        context = Blob.of(bytes([i]) * (1 << 20))
        for _ in range(2):
            jobs.value(jobs.submit(lambda *_: None, context=context))
            (worker,) = jobs.hub._pool
            kept_nbytes.append(sum(worker.blobs.values()) >> 20)
    once = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert kept_nbytes == [*once, *once, 1, 1, 2, 2]


def test_an_error_in_a_job_has_its_traceback(jobs):
    def work(*_):
        raise ValueError("broken")

    with pytest.raises(JobFailedError, match="ValueError: broken") as caught:
        jobs.run(work)
    assert "in work" in caught.value.detail


def test_a_worker_that_is_killed_is_replaced_and_its_job_run_again(jobs, tmp_path):
    def work(path, _):
        pid = os.getpid()
        (path / str(pid)).touch()
        if os.environ["ATTEMPT"] == "1":
            time.sleep(60)
        return pid, os.environ["ATTEMPT"]

    outcome = jobs.submit(work, tmp_path)
    first = int(appeared(tmp_path))
    os.kill(first, signal.SIGKILL)
    second, attempt = jobs.value(outcome)
    assert second != first
    assert attempt == "2"
    assert {int(path.name) for path in tmp_path.iterdir()} == {first, second}


def test_a_job_that_kills_its_workers_is_given_up_with_the_cause(start_hub, tmp_path, capfd):
    jobs = start_hub(max_worker_deaths=3)

    def poison(path, _):
        (path / str(os.getpid())).touch()
        os.write(2, b"I am poison\n")
        os.kill(os.getpid(), signal.SIGSEGV)

    others = [jobs.submit(lambda *_: "fine") for _ in range(5)]
    with pytest.raises(WorkerDiedError, match=r"killed by SIGSEGV.*so did 2 before") as caught:
        jobs.run(poison, tmp_path)
    assert "I am poison" in caught.value.message
    assert len(list(tmp_path.iterdir())) == 3
    assert [jobs.value(outcome) for outcome in others] == ["fine"] * 5
    assert jobs.run(lambda *_: "fine") == "fine"
    assert capfd.readouterr().err.count("I am poison") == 3


def test_a_result_sent_just_before_death_counts(jobs):
    def work(_, notify):
        import threading

        threading.Thread(target=lambda: (time.sleep(0.05), os._exit(1))).start()
        return "done"

    for _ in range(3):
        assert jobs.run(work) == "done"
        time.sleep(0.1)


def test_an_idle_worker_that_dies_is_not_given_work(jobs):
    pid = jobs.run(lambda *_: os.getpid())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while pid in jobs.hub.worker_pids and time.monotonic() < deadline:
        time.sleep(0.01)
    assert jobs.run(lambda *_: os.getpid()) != pid


def test_a_grandchild_that_outlives_its_worker_hides_no_death(start_hub):
    jobs = start_hub(max_worker_deaths=1)

    def work(*_):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    jobs.run(lambda *_: None)  # its worker has started
    started = time.monotonic()
    with pytest.raises(WorkerDiedError):
        jobs.run(work)
    assert time.monotonic() - started < 3


def test_closing_waits_for_what_runs_and_takes_back_the_rest(jobs, journal, tmp_path):
    gate = tmp_path / "gate"
    outcomes = {n: jobs.submit(wait_for_file, (journal, n, gate)) for n in "01234"}
    closing = threading.Thread(target=jobs.hub.close)
    try:
        settled(lambda: len(journal.lines(None, "begin")) == 2)
        begun = {key for key, *_ in journal.lines(None, "begin")}
        closing.start()
        for key in outcomes.keys() - begun:
            assert isinstance(outcomes[key].get(timeout=20), JobCancelledError)
        assert closing.is_alive()
    finally:
        gate.touch()
    closing.join()
    assert {decode(outcomes[key].get(timeout=1)[0].open()) for key in begun} == begun
    assert {key for key, *_ in journal.lines(None, "begin")} == begun
    with pytest.raises(JobCancelledError, match="closed"):
        jobs.run(lambda *_: None)


def test_a_fork_of_the_driver_harms_nobody(jobs):
    jobs.run(lambda *_: None)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            jobs.hub.abort()
            jobs.hub.cancel_pending()
        except ConfigError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert jobs.run(lambda x, _: x, 1) == 1


def test_the_socket_is_in_a_private_folder(jobs, runtime_root):
    jobs.run(lambda *_: None)
    (folder,) = runtime_root.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "hub.sock").is_socket()


def test_strangers_on_the_socket_are_ignored(jobs, runtime_root, caplog):
    jobs.run(lambda *_: None)
    (folder,) = runtime_root.iterdir()
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(f"ipc://{folder}/hub.sock")
        stranger.send_multipart([b"garbage"])
        stranger.send_multipart([b"ZFST\x09" + bytes(100)])
        stranger.send(b"")
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(folder / "hub.sock"))
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert [jobs.run(lambda x, _: x, i) for i in range(20)] == list(range(20))
        settled(lambda: "message dropped" in caplog.text)


DRIVER = """
    import os, sys, time
    sys.path.insert(0, {tests!r})
    import hub_jobs
    from zfast.runner.hub import Hub
    from zfast.runner.policy import Policy
    hub = Hub(Policy(max_workers=2), executor="hub_executor:FunctionExecutor", environment={{}},
              on_note=lambda *_: None)
    jobs = hub_jobs.Jobs(hub)
    def work(what, _):
        (what and sum(range(10 ** 11))) or None
        return os.getpid()
    jobs.run(work, False)
    # one worker deep in a computation that holds the interpreter, one idle
    busy = jobs.submit(work, True)
    print(*hub.worker_pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_killed_leaves_nothing(runtime_root, how):
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER.format(tests=str(TESTS)))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert pids
    time.sleep(0.3)
    driver.send_signal(how)
    driver.wait(timeout=10)
    driver.stdout.close()
    assert gone(pids, list(runtime_root.iterdir()))


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.2, 0.3, 0.5])
def test_a_driver_killed_while_it_starts_workers_leaves_nothing(runtime_root, delay_s):
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER.format(tests=str(TESTS)))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not list(runtime_root.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay_s)
    driver.kill()
    driver.wait()
    (folder,) = [*runtime_root.iterdir()] or [runtime_root / "gone"]
    if not gone([], [folder]):
        # Killed before its first worker could run: the next hub sweeps.
        assert not (folder / "hub.sock").exists()
        hub = Hub(Policy(max_workers=1), executor="x:y", environment={}, on_note=lambda *_: None)
        hub.close()
        assert not folder.exists()
