"""Faults, one at a time, on real processes; a journal of what the jobs did tells what is true."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

from hub_jobs import STORM_DEATHS, Journal, check, hang_once, settled, simple, storm
from zfast.codec import decode
from zfast.errors import WorkerDiedError, WorkerStartError
from zfast.runner import pool
from zfast.runner.job import JobFailedError
from zfast.security.held_secrets import environment_for_children

LEASE_S = 0.8


# ---- a worker is killed ---------------------------------------------------------------------


def test_killed_before_it_begins_the_job_runs_once(start_hub, journal):
    jobs = start_hub(max_workers=1, spares=0)
    pid = jobs.run(lambda *_: os.getpid())
    os.kill(pid, signal.SIGSTOP)  # it is handed the job, and can never begin it
    outcome = jobs.submit(simple, (journal, "k", 0))
    settled(lambda: jobs.hub._dispatcher.n_jobs == 1)
    os.kill(pid, signal.SIGKILL)
    assert jobs.value(outcome) == "k"
    assert [line[2] for line in journal.lines("k", "begin")] == [1]


def test_killed_while_it_runs_or_after_its_side_effect_the_job_runs_again(start_hub, journal):
    jobs = start_hub()
    outcome = jobs.submit(hang_once, (journal, "k"))
    os.kill(journal.wait_for("k", "begin"), signal.SIGKILL)
    assert jobs.value(outcome) == 2
    # At least once: a side effect is not undone, and the job can tell by its attempt.
    assert [line[2] for line in journal.lines("k", "begin")] == [1, 2]
    assert [line[2] for line in journal.lines("k", "end")] == [2]


def test_killed_after_its_result_was_handed_over_the_job_is_not_run_again(start_hub, journal):
    jobs = start_hub()

    def make(argument, _):
        journal, n = argument
        journal.note("make", "begin")
        return np.arange(n, dtype=float)

    result = jobs.submit(make, (journal, 1_000_000)).get(timeout=60)
    os.kill(journal.wait_for("make", "begin"), signal.SIGKILL)

    def consume(array, _):
        if os.environ["ATTEMPT"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return float(array.sum())

    # The memory's owner is dead, and its consumer dies too: the consumer's replay reads it.
    assert jobs.value(jobs.submit(consume, result[0])) == sum(range(1_000_000))
    assert decode(result[0].open())[-1] == 999_999
    assert len(journal.lines("make", "begin")) == 1


def test_a_spare_takes_over(start_hub, journal, monkeypatch):
    monkeypatch.setattr(pool, "SETTLED_S", 0.0)
    jobs = start_hub(max_workers=2, spares=1)
    outcomes = [jobs.submit(hang_once, (journal, key)) for key in "ab"]
    busy = {journal.wait_for(key, "begin") for key in "ab"}
    (spare,) = settled(lambda: set(jobs.hub.worker_pids) - busy)
    settled(lambda: all(worker.ready for worker in jobs.hub._pool))
    os.kill(journal.wait_for("a", "begin"), signal.SIGKILL)
    assert jobs.value(outcomes[0]) == 2
    assert journal.wait_for("a", "begin", 2) == spare
    os.kill(journal.wait_for("b", "begin"), signal.SIGKILL)
    assert jobs.value(outcomes[1]) == 2


def test_spares_know_the_code_before_they_are_needed(start_hub, monkeypatch, journal):
    monkeypatch.setattr(pool, "SETTLED_S", 0.0)
    jobs = start_hub(max_workers=1, spares=1)
    outcome = jobs.submit(hang_once, (journal, "k"))
    first = journal.wait_for("k", "begin")
    settled(lambda: set(jobs.hub.worker_pids) - {first})
    settled(lambda: all(worker.ready for worker in jobs.hub._pool))
    os.kill(first, signal.SIGKILL)
    assert jobs.value(outcome) == 2
    assert jobs.run(lambda *_: os.environ["WARMED"]) == "1"


# ---- a worker does not answer ---------------------------------------------------------------


def test_a_worker_stopped_beyond_its_lease_is_killed_and_its_job_run_again(start_hub, journal):
    jobs = start_hub(lease_s=LEASE_S)
    outcome = jobs.submit(hang_once, (journal, "k"))
    pid = journal.wait_for("k", "begin")
    os.kill(pid, signal.SIGSTOP)
    assert jobs.value(outcome) == 2
    assert pid not in jobs.hub.worker_pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)  # there is nobody to send a late result
    assert [line[2] for line in journal.lines("k", "begin")] == [1, 2]


def test_the_lease_is_named_as_the_cause(start_hub):
    jobs = start_hub(lease_s=LEASE_S, max_worker_deaths=1)

    def stop(*_):
        os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(WorkerDiedError, match=r"was stopped for 0\.8 s, its lease"):
        jobs.run(stop)


def test_stopped_for_less_nothing_happens(start_hub, journal):
    jobs = start_hub(lease_s=30.0)
    outcome = jobs.submit(simple, (journal, "k", 0.2))
    pid = journal.wait_for("k", "begin")
    os.kill(pid, signal.SIGSTOP)
    assert jobs.run(lambda *_: "others go on") == "others go on"
    os.kill(pid, signal.SIGCONT)
    assert jobs.value(outcome) == "k"
    assert len(journal.lines("k", "begin")) == 1


def test_an_interpreter_that_hangs_is_killed(start_hub, journal):
    jobs = start_hub(lease_s=LEASE_S)

    def hang(journal, _):
        import ctypes

        journal.note("hang", "begin")
        if os.environ["ATTEMPT"] == "1":
            ctypes.PyDLL(None).pause()  # for ever, with the interpreter's lock
        return "well"

    assert jobs.run(hang, journal) == "well"
    assert [line[2] for line in journal.lines("hang", "begin")] == [1, 2]


def test_one_long_computation_that_never_lets_go_is_left_alone(start_hub, journal):
    jobs = start_hub(lease_s=LEASE_S)

    def compute(argument, _):
        import itertools

        journal, seconds = argument
        journal.note("long", "begin")
        n, took = 1_000_000, 0.0
        while took < seconds:  # in the end one call of C code longer than the lease
            n = int(n * 1.8)
            began = time.monotonic()
            sum(itertools.repeat(1, n))
            took = time.monotonic() - began
        return "done"

    assert jobs.run(compute, (journal, 2 * LEASE_S)) == "done"
    assert len(journal.lines("long", "begin")) == 1


# ---- what goes wrong in other ways ------------------------------------------------------------


@pytest.mark.parametrize("extra", ["the same", "an earlier attempt's", "another job's"])
def test_results_that_do_not_count_are_dropped_and_their_memory_freed(start_hub, extra):
    jobs = start_hub(max_workers=1)

    def work(extra, _):
        import msgspec

        from zfast.runner.hub_connection import HubConnection
        from zfast.runner.protocol import Done, Failed

        post = HubConnection.post

        def post_more(self, message, buffers=None):
            if not isinstance(message, Done):
                post(self, message, buffers)
                return
            job_id, attempt = message.attempt
            other = {
                "the same": message.attempt,
                "an earlier attempt's": (job_id, attempt - 1),
                "another job's": (b"x" * 16, attempt),
            }[extra]
            if other != message.attempt:
                post(self, Failed(other, "RuntimeError", "not to be believed", ""))
            post(self, message, buffers)
            post(self, msgspec.structs.replace(message, attempt=other), buffers)

        HubConnection.post = post_more
        return np.ones(200_000)

    outcome = jobs.submit(work, extra)
    assert decode(outcome.get(timeout=60)[0].open()).sum() == 200_000
    assert outcome.empty()
    del outcome
    settled(lambda: jobs.hub.leases.leased_nbytes == 0)
    assert jobs.value(jobs.submit(lambda *_: "next")) == "next"


def test_a_task_out_of_memory_fails_alone(start_hub):
    jobs = start_hub()

    def hungry(*_):
        import resource

        limit = 1 << 30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return len(bytearray(4 * limit))

    with pytest.raises(JobFailedError, match="MemoryError"):
        jobs.run(hungry)
    assert jobs.run(lambda *_: "fine") == "fine"


def test_an_out_of_memory_kill_is_named(start_hub, monkeypatch):
    from zfast.runner import worker_process

    kills = iter(range(1000))
    monkeypatch.setattr(worker_process, "n_oom_kills", lambda: next(kills))
    jobs = start_hub(max_worker_deaths=1)
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL; the kernel's out-of-memory"):
        jobs.run(lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def broken_initializer(text):
    raise RuntimeError(text)


def test_workers_that_die_at_their_start_fail_the_runner_with_their_words(start_hub):
    jobs = start_hub(initializer=encode_initializer(broken_initializer, "no licence"))
    outcomes = [jobs.submit(lambda *_: None) for _ in range(5)]
    for outcome in outcomes:
        with pytest.raises(WorkerStartError, match="no licence"):
            jobs.value(outcome)
    with pytest.raises(WorkerStartError, match=r"[3-5] worker processes in a row"):
        jobs.run(lambda *_: None)


def licensed(path):
    if not os.path.exists(path):
        raise RuntimeError("no licence")


def test_workers_are_tried_again_when_a_job_comes_later(start_hub, tmp_path):
    licence = tmp_path / "licence"
    jobs = start_hub(
        max_workers=1, spares=0, initializer=encode_initializer(licensed, str(licence))
    )
    with pytest.raises(WorkerStartError, match="no licence"):
        jobs.run(lambda *_: None)
    licence.touch()

    def ran():
        with contextlib.suppress(WorkerStartError):
            return jobs.run(lambda *_: "ran")

    assert settled(ran) == "ran"


def test_every_worker_has_the_variables_and_the_folder_of_the_first(
    start_hub, monkeypatch, tmp_path
):
    def surroundings(*_):
        return os.getpid(), os.environ.get("ZFAST_ONCE"), os.getcwd()

    first, then = tmp_path / "first", tmp_path / "then"
    for folder in (first, then):
        folder.mkdir()
    monkeypatch.chdir(first)
    monkeypatch.setenv("ZFAST_ONCE", "first")
    jobs = start_hub(max_workers=1, spares=0, max_tasks_per_worker=1)
    before = jobs.run(surroundings)
    monkeypatch.chdir(then)
    monkeypatch.setenv("ZFAST_ONCE", "then")
    after = jobs.run(surroundings)
    assert before[0] != after[0]
    assert before[1:] == after[1:] == ("first", str(first))
    first.rmdir()
    assert jobs.run(surroundings)[2] == str(then)


def test_variables_may_come_and_go_while_workers_are_started(start_hub):
    ended = threading.Event()

    def come_and_go():
        while not ended.is_set():
            for i in range(200):
                os.environ[f"ZFAST_COMES_{i}"] = ""
            for i in range(200):
                del os.environ[f"ZFAST_COMES_{i}"]

    changing = threading.Thread(target=come_and_go)
    changing.start()
    try:
        for _ in range(300):
            environment_for_children()
        assert start_hub(max_workers=1, spares=0).run(lambda *_: "ran") == "ran"
    finally:
        ended.set()
        changing.join()


def encode_initializer(function, *arguments):
    import cloudpickle

    return cloudpickle.dumps((function, arguments))


def test_the_initializer_runs_once_in_each_worker(start_hub, journal):
    jobs = start_hub(initializer=encode_initializer(Journal.note, journal, "init", "begin"))
    pids = {jobs.run(lambda *_: os.getpid()) for _ in range(3)}
    assert [line[3] for line in journal.lines("init")] == list(pids)


# ---- drain, and storms ------------------------------------------------------------------------


def test_a_worker_told_to_end_finishes_what_runs_and_loses_nothing(start_hub, journal):
    jobs = start_hub()
    outcomes = {f"j{i}": jobs.submit(simple, (journal, f"j{i}", 0.05)) for i in range(40)}
    for n in (1, 8, 16):
        journal.wait_for(None, "end", n)
        os.kill(journal.lines(None, "begin")[-1][3], signal.SIGTERM)
    results = {key: jobs.value(outcome) for key, outcome in outcomes.items()}
    check(journal, results, max_worker_deaths=1)


def test_random_kills_lose_nothing_and_repeat_nothing_that_is_done(start_hub, journal):
    jobs = start_hub(max_workers=2, spares=1, max_worker_deaths=STORM_DEATHS)
    n_killed, results = storm(jobs, journal, 80, 0.1, 0.4, seed=1, only_ready=True)
    assert n_killed >= 3
    assert all(result == key for key, result in results.items())
