"""Each fault of the runner's workers many times, a storm of kills, and how soon spares take over.

    python tests/soak_runner.py [--rounds 20] [--jobs 300] [--takeovers 5] [--seed 1]

The oracle is the journal of ``hub_jobs``: nothing lost, nothing begun too often, nothing that had
ended run again. In the end no process, descriptor or lease is left.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hub_jobs import STORM_DEATHS, Jobs, Journal, hang_once, settled, storm
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy

TESTS = Path(__file__).parent
#: The tests of faults, by where they strike.
FAULTS = {
    "local workers, at each stage": ["test_runner_faults.py"],
    "a result sent just before death": ["test_hub.py::test_a_result_sent_just_before_death_counts"],
    "a result stored just before death": [
        "test_task_replay.py::test_a_result_that_was_stored_before_the_death_is_used"
    ],
    "tasks that kill their workers": [
        "test_hub.py::test_a_job_that_kills_its_workers_is_given_up_with_the_cause"
    ],
    "the driver": [
        "test_hub.py::test_a_driver_that_is_killed_leaves_nothing",
        "test_task_replay.py::test_a_flow_that_was_killed_and_is_run_again_finds_what_it_persisted",
        "test_remote_workers.py::test_workers_end_soon_after_their_driver_was_killed",
    ],
    "the network between hosts": [
        "test_session.py",
        "test_remote_workers.py::test_cuts_in_the_middle_of_messages_cost_no_attempt",
        "test_remote_workers.py::test_a_partition_that_heals_within_the_lease_costs_no_attempt",
        "test_remote_workers.py::"
        "test_a_partition_longer_than_the_lease_has_its_late_answer_fenced_off",
        "test_remote_workers.py::test_results_whose_receipts_are_lost_count_once",
        "test_remote_workers.py::test_a_slow_line_is_only_slow",
        "test_remote_workers.py::test_a_line_between_hosts_that_is_cut_and_comes_back",
    ],
    "another host": [
        "test_remote_workers.py::test_a_host_that_dies_has_its_jobs_run_elsewhere",
        "test_remote_workers.py::test_a_drained_host_finishes_what_runs_and_leaves",
    ],
    "a subscriber that does not read": [
        "test_events_publish.py::"
        "test_a_subscriber_that_does_not_read_misses_some_is_told_and_has_the_truth"
    ],
}


def start(**policy):
    return Jobs(
        Hub(
            Policy(**policy),
            executor="hub_executor:FunctionExecutor",
            environment={"PYTHONPATH": str(TESTS)},
            on_note=lambda *_: None,
        )
    )


def faults(n_rounds):
    """Each fault test that many times, each round in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider"]
    tests = [str(TESTS / test) for found in FAULTS.values() for test in found]
    for n in range(n_rounds):
        done = subprocess.run(
            [*command, *tests],
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"round {n + 1}: {done.stdout.splitlines()[-1]}", flush=True)


def storms(n_jobs, seed, folder):
    """Jobs of up to 0.4 s, a random worker killed every second."""
    n_files = len(os.listdir("/proc/self/fd"))
    jobs = start(max_workers=2, spares=1, max_worker_deaths=STORM_DEATHS)
    began = time.monotonic()
    n_killed, results = storm(jobs, Journal(folder / "storm"), n_jobs, 0.4, 1.0, seed)
    took_s = time.monotonic() - began
    assert all(result == key for key, result in results.items()), "a job was given up"
    jobs.hub.close()
    assert jobs.hub.worker_pids == []
    assert jobs.hub.leases.leased_nbytes == 0
    del jobs
    gc.collect()
    n_left = len(os.listdir("/proc/self/fd")) - n_files
    assert n_left <= 8, f"{n_left} descriptors are left"  # ZeroMQ's context, the first time
    print(f"storm: {n_jobs} jobs in {took_s:.0f} s, {n_killed} workers killed, none lost")


def takeovers(n, folder):
    """How long from kill -9 until the death is noticed, and until the job runs on the spare."""
    noticed_ms, running_ms = [], []
    jobs = start(max_workers=1, spares=1)
    for number in range(n):
        journal = Journal(folder / f"takeover-{number}")
        outcome = jobs.submit(hang_once, (journal, "k"))
        first = journal.wait_for("k", "begin")
        settled(lambda: len(jobs.hub.worker_pids) == 2)
        settled(lambda: all(worker.ready for worker in jobs.hub._pool))
        time.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        while first in jobs.hub.worker_pids:
            time.sleep(0.0005)
        noticed_ms.append((time.monotonic() - killed) * 1e3)
        journal.wait_for("k", "begin", 2)
        running_ms.append((time.monotonic() - killed) * 1e3)
        assert jobs.value(outcome) == 2
    jobs.hub.close()
    for what, times in (("noticed", noticed_ms), ("running on a spare", running_ms)):
        print(f"{what}: median {statistics.median(times):.0f} ms, most {max(times):.0f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--takeovers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        takeovers(arguments.takeovers, Path(folder))
        storms(arguments.jobs, arguments.seed, Path(folder))
        faults(arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
