"""Each fault of the runner's workers many times, a storm of kills, and how soon spares take over.

    python tests/soak_runner.py [--rounds 20] [--jobs 300] [--seed 1]

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

from hub_jobs import Jobs, Journal, hang_once, settled, storm
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy

TESTS = Path(__file__).parent


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
    """Each fault test, in a process of its own, that many times."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for n in range(n_rounds):
        done = subprocess.run(
            [*command, "-x", str(TESTS / "test_runner_faults.py")],
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
    jobs = start(max_workers=2, spares=1)
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
