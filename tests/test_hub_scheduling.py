"""Who gets which job when, on real workers."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from hub_jobs import hang_once, meet, settled, simple, wait_for_file
from zfast.errors import WorkerDiedError
from zfast.runner.hub_line import HubAddress
from zfast.runner.job import JobCancelledError
from zfast.runner.status_client import ask_status

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")


@pytest.fixture
def keep_at_the_worker(monkeypatch):
    """What was handed out in advance stays there however long the job before it takes."""
    monkeypatch.setattr("zfast.runner.scheduling.SHORT_S", 60.0)
    monkeypatch.setattr("zfast.runner.placement.RECALL_AFTER_S", 120.0)
    monkeypatch.setattr("zfast.runner.dispatcher.RECALL_AFTER_S", 120.0)


def learn_that_jobs_are_short(jobs):
    for _ in range(5):
        jobs.run(lambda *_: None)


def test_nothing_waits_behind_a_long_job(start_hub, journal, tmp_path):
    jobs = start_hub(max_workers=2, spares=0)
    learn_that_jobs_are_short(jobs)
    gate = tmp_path / "gate"
    long = jobs.submit(wait_for_file, (journal, "long", gate))
    journal.wait_for("long", "begin")
    # Some of them are handed out behind the long one, since such jobs were short so far.
    short = [jobs.submit(simple, (journal, f"s{i}", 0.01)) for i in range(20)]
    assert [jobs.value(outcome) for outcome in short] == [f"s{i}" for i in range(20)]
    gate.touch()
    assert jobs.value(long) == "long"
    assert all(len(journal.lines(f"s{i}", "begin")) == 1 for i in range(20))


def test_a_job_that_was_handed_out_in_advance_can_be_cancelled(start_hub, journal, tmp_path):
    jobs = start_hub(max_workers=1, spares=0)
    learn_that_jobs_are_short(jobs)
    gate = tmp_path / "gate"
    running = jobs.submit(wait_for_file, (journal, "long", gate))
    waiting = [jobs.submit(simple, (journal, f"w{i}", 0)) for i in range(3)]
    journal.wait_for("long", "begin")
    jobs.hub.cancel_pending()
    for outcome in waiting:
        with pytest.raises(JobCancelledError):
            jobs.value(outcome)
    gate.touch()
    assert jobs.value(running) == "long"
    assert journal.lines("w0") == []


def test_a_job_that_was_handed_out_in_advance_survives_its_worker(start_hub, journal):
    jobs = start_hub(max_workers=1, spares=0)
    learn_that_jobs_are_short(jobs)
    first = jobs.submit(hang_once, (journal, "first"))
    second = jobs.submit(simple, (journal, "second", 0))
    os.kill(journal.wait_for("first", "begin"), signal.SIGKILL)
    assert jobs.value(first) == 2
    assert jobs.value(second) == "second"
    # It was not begun by the worker that died, and so this is its first attempt.
    assert [line[2] for line in journal.lines("second", "begin")] == [1]


def test_clients_take_turns(start_hub, journal):
    jobs = start_hub(max_workers=1, spares=0)
    jobs.run(lambda *_: None)

    def submit(client, key):
        return jobs.submit(simple, (journal, key, 0.01), client=client)

    many = [submit(b"large flow", f"many{i}") for i in range(30)]
    assert jobs.value(submit(b"small flow", "one")) == "one"
    assert all(jobs.value(outcome) for outcome in many)
    ended = [key for key, *_ in journal.lines(None, "end")]
    assert ended.index("one") < 29


def test_a_job_goes_to_the_worker_that_has_its_data(start_hub, journal):
    jobs = start_hub(max_workers=2, spares=0)

    def make(argument, _):
        journal, key = argument
        journal.note(key, "begin")
        while len(journal.lines(None, "begin")) < 2:  # both workers are at it
            time.sleep(0.005)
        return np.full(100_000, os.getpid())

    results = [
        outcome.get(timeout=60) for outcome in [jobs.submit(make, (journal, key)) for key in "ab"]
    ]
    for result in [*results, *reversed(results), *results]:
        owner, reader = jobs.run(lambda array, _: (int(array[0]), os.getpid()), result[0])
        assert reader == owner


def test_idle_workers_are_stopped_down_to_the_least_number(start_hub, tmp_path):
    jobs = start_hub(max_workers=3, min_workers=1, spares=0, idle_timeout_s=0.3)
    outcomes = [jobs.submit(lambda *_: time.sleep(0.3)) for _ in range(3)]
    for outcome in outcomes:
        jobs.value(outcome)
    settled(lambda: len(jobs.hub.worker_pids) == 1)
    assert jobs.run(lambda *_: "still there") == "still there"

    outcomes = [jobs.submit(meet, tmp_path) for _ in range(2)]
    assert len({jobs.value(outcome) for outcome in outcomes}) == 2


def test_the_least_number_of_workers_is_there_without_work(start_hub):
    jobs = start_hub(max_workers=3, min_workers=2)
    settled(lambda: len(jobs.hub.worker_pids) == 2)


def test_workers_are_replaced_after_so_many_jobs(start_hub):
    jobs = start_hub(max_workers=1, spares=0, max_tasks_per_worker=3)
    pids = [jobs.run(lambda *_: os.getpid()) for _ in range(8)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 2]


def test_workers_that_have_grown_too_large_are_replaced(start_hub):
    jobs = start_hub(max_workers=1, spares=0, lease_s=1.0, max_worker_nbytes=400 << 20)

    def grow(nbytes, _):
        import builtins

        builtins.kept = bytes(nbytes) + b"x"
        return os.getpid()

    pid = jobs.run(grow, 1 << 20)
    assert jobs.run(grow, 600 << 20) == pid
    settled(lambda: pid not in jobs.hub.worker_pids)
    assert jobs.run(grow, 1 << 20) != pid


def test_shared_memory_does_not_count_as_grown(start_hub):
    jobs = start_hub(max_workers=1, spares=0, lease_s=0.4, max_worker_nbytes=400 << 20)

    def make(nbytes, _):
        return np.ones(nbytes, np.uint8), os.getpid()

    pids = {jobs.run(make, 500 << 20)[1] for _ in range(3)}
    time.sleep(0.3)
    pids.add(jobs.run(make, 1)[1])
    assert len(pids) == 1


def test_no_job_is_handed_out_in_advance_while_too_many_bytes_travel(
    start_hub, journal, tmp_path, keep_at_the_worker
):
    def assert_at_the_worker(expected, max_inflight_nbytes):
        jobs = start_hub(max_workers=1, spares=0, max_inflight_nbytes=max_inflight_nbytes)
        learn_that_jobs_are_short(jobs)
        address = HubAddress(jobs.hub._folder.endpoint)
        gate = tmp_path / f"gate-{max_inflight_nbytes}"
        try:
            running = jobs.submit(wait_for_file, (journal, gate.name, gate))
            journal.wait_for(gate.name, "begin")
            waiting = jobs.submit(simple, (journal, "next", 0))
            # Not only in the moment between being taken in and being handed out.
            settled(lambda: {of_jobs(address) for _ in range(5)} == {expected})
        finally:
            gate.touch()
        assert [jobs.value(running), jobs.value(waiting)] == [gate.name, "next"]

    def of_jobs(address):
        status = ask_status(address)
        return status.running, status.queued

    assert_at_the_worker((1, 1), max_inflight_nbytes=1)
    assert_at_the_worker((2, 0), max_inflight_nbytes=256 << 20)


def test_what_was_handed_out_in_advance_is_cancelled_when_the_runner_is_aborted(
    start_hub, journal, tmp_path, keep_at_the_worker
):
    jobs = start_hub(max_workers=1, spares=0)
    learn_that_jobs_are_short(jobs)
    running = jobs.submit(wait_for_file, (journal, "long", tmp_path / "gate"))
    journal.wait_for("long", "begin")
    waiting = [jobs.submit(simple, (journal, f"w{i}", 0)) for i in range(3)]
    held_by = jobs.hub._dispatcher.held_by
    settled(lambda: [len(held_by(worker)) for worker in jobs.hub._pool] == [2])
    jobs.hub.abort()
    with pytest.raises(WorkerDiedError, match="interrupted"):
        jobs.value(running)
    for outcome in waiting:
        with pytest.raises(JobCancelledError):
            jobs.value(outcome)
    assert [line[0] for line in journal.lines()] == ["long"]
