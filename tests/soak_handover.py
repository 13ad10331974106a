"""Thousands of hand-overs of random sizes, with workers killed and processes forked at random.

    python tests/soak_handover.py [--hand-overs 10000] [--seed 1]

Every value is checked wherever it is read: in workers, in the driver, and in forked children that
look at it after their parent has let it go. In the end nothing is left: no lease, no descriptor,
no process, no mapped segment of a peer.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash

from hub_jobs import Jobs
from zfast import arena
from zfast.codec import decode, encode
from zfast.errors import WorkerError
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy

MAX_KEPT = 8
MAX_UNDER_WAY = 4
#: What a kill may cost: jobs that were running, or were handed to the worker that died.
KILL_EVERY = 100
FORK_EVERY = 25


def make(what, _=None):
    """The value that a seed stands for, in one of several forms."""
    seed, kind, n = what
    numbers = np.random.default_rng(seed)
    if kind == "array":
        return numbers.random(n)
    if kind == "zeros":
        array = np.zeros(n)
        array[:] = numbers.random(n)
        return array
    if kind == "frame":
        return pd.DataFrame(numbers.random((max(1, n // 4), 4)), columns=list("abcd"))
    if kind == "strings":
        return pd.DataFrame({"s": [f"{seed}-{i}" for i in range(n // 50)], "i": range(n // 50)})
    return {"parts": np.array_split(numbers.random(n), 3), "seed": seed}


def digest(value):
    if isinstance(value, dict):
        return tuple(digest(part) for part in value["parts"])
    if isinstance(value, pd.DataFrame):
        return xxhash.xxh3_64_hexdigest(pd.util.hash_pandas_object(value).to_numpy())
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(value).view(np.uint8))


def check(argument, _=None):
    value, what = argument
    return digest(value) == digest(make(what))


def pass_on(argument, _):
    """An input comes back unchanged, beside something new."""
    value, what = argument
    return {"parts": [value], "new": make(what)}


def fork_and_check(argument, _):
    """A child looks at the argument when this process has long let it go."""
    value, what, report = argument
    if os.fork() == 0:
        time.sleep(random.Random(what[0]).random() * 0.2)
        Path(report).write_text("ok" if digest(value) == digest(make(what)) else "wrong")
        os._exit(0)
    return True


class Soak:
    """One run."""

    def __init__(self, n_hand_overs, seed, folder):
        self.random = random.Random(seed)
        self.n_left = n_hand_overs
        self.folder = folder
        self.hub = Hub(
            Policy(max_workers=2),
            executor="hub_executor:FunctionExecutor",
            environment={"PYTHONPATH": str(Path(__file__).parent)},
            on_note=lambda *_: None,
        )
        self.jobs = Jobs(self.hub)
        self.kept = {}
        self.under_way = []
        self.children = []
        self.seed = 0
        self.counts = Counter()

    def run(self):
        while self.n_left > 0:
            self.step()
        while self.under_way:
            self.finish()
        self.kept.clear()
        for report, pid in self.children:
            if pid:
                os.waitpid(pid, 0)
            self.expect(report)

    def step(self):
        while len(self.under_way) >= MAX_UNDER_WAY:
            self.finish()
        if len(self.kept) < 2 or self.random.random() < 0.3:
            self.seed += 1
            kind = self.random.choice(["array", "zeros", "frame", "strings", "dict"])
            what = (self.seed, kind, int(10 ** self.random.uniform(2.0, 5.5)))
            self.under_way.append(("make", what, self.jobs.submit(make, what)))
            return
        while len(self.kept) > MAX_KEPT:
            del self.kept[self.random.choice(list(self.kept))]
        what = self.random.choice(list(self.kept))
        value = self.kept[what]
        action = self.random.choices(
            ["check", "give", "read", "pass_on", "fork", "fork here"],
            [10, 4, 6, 4, 10 / FORK_EVERY, 10 / FORK_EVERY],
        )[0]
        if action == "read":
            assert digest(decode(value.open())) == digest(make(what)), what
            self.count(action)
        elif action == "fork here":
            self.fork_here(what, value)
        elif action == "fork":
            report = self.report()
            argument = self.bundle(value, what, report)
            self.under_way.append((action, report, self.jobs.submit(fork_and_check, argument)))
        elif action == "give":  # the driver's own, copied into its arena
            argument = make(what), what
            self.under_way.append((action, what, self.jobs.submit(check, argument)))
        else:
            function = check if action == "check" else pass_on
            self.under_way.append(
                (action, what, self.jobs.submit(function, self.bundle(value, what)))
            )
        if self.random.random() < 1 / KILL_EVERY and self.hub.worker_pids:
            os.kill(self.random.choice(self.hub.worker_pids), signal.SIGKILL)
            self.counts["kills"] += 1

    def bundle(self, parcel, *rest):
        """A parcel whose value and companions arrive as one argument."""
        return self.hub.handover.snapshot(encode((decode(parcel.open()), *rest)))

    def fork_here(self, what, parcel):
        value, report = decode(parcel.open()), self.report()
        del self.kept[what], parcel
        pid = os.fork()
        if pid == 0:
            time.sleep(0.1)
            Path(report).write_text("ok" if digest(value) == digest(make(what)) else "wrong")
            os._exit(0)
        self.children.append((report, pid))
        self.count("fork here")

    def finish(self):
        action, what, outcome = self.under_way.pop(0)
        result = outcome.get(timeout=120)
        if isinstance(result, WorkerError):
            assert "died" in str(result), result
            self.counts["lost to kills"] += 1
            return
        if action == "make":
            self.kept[what] = result[0]
        elif action in ("check", "give"):
            assert decode(result[0].open()) is True, what
        elif action == "pass_on":
            value = decode(result[0].open())
            assert digest(value["parts"][0]) == digest(make(what)), what
            assert digest(value["new"]) == digest(make(what)), what
        else:
            self.children.append((what, 0))
        self.count(action)

    def report(self):
        return str(self.folder / f"{self.counts['reports']}-{self.random.random()}")

    def expect(self, report):
        deadline = time.monotonic() + 10
        while not (Path(report).exists() and Path(report).read_text()):
            assert time.monotonic() < deadline, "a forked child has not reported"
            time.sleep(0.01)
        assert Path(report).read_text() == "ok"

    def count(self, action):
        self.n_left -= 1
        self.counts["hand-overs"] += 1
        self.counts[action] += 1

    def close(self):
        """End it, and check that nothing is left."""
        deadline = time.monotonic() + 20
        while self.hub.leases.leased_nbytes and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        assert self.hub.leases.leased_nbytes == 0, list(self.hub.leases.leases())
        self.hub.close()
        assert self.hub.worker_pids == []
        assert arena.statistics().n_publications == 0


def open_files():
    """What this process has open, but for the segments that its arena keeps warm."""
    files = Counter()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            files[os.readlink(fd).partition(":[")[0]] += 1
        except OSError:
            continue  # the listing's own
    return Counter({name: n for name, n in files.items() if "memfd" not in name}), sum(
        n for name, n in files.items() if "memfd" in name
    )


def soak(n_hand_overs, seed):
    """Run it; what happened, by kind."""
    hub = Soak(0, seed, Path()).hub  # ZeroMQ's context stays
    hub.close()
    del hub
    gc.collect()
    before, _ = open_files()
    with tempfile.TemporaryDirectory() as folder:
        run = Soak(n_hand_overs, seed, Path(folder))
        run.run()
        run.close()
    counts = run.counts
    del run
    deadline = time.monotonic() + 20  # libzmq closes on a thread of its own
    while not _nothing_is_left(before):
        assert time.monotonic() < deadline, open_files()[0] - before
        time.sleep(0.01)
    return counts


def _nothing_is_left(before):
    """Whether nothing is open that was not, but for the segments that the arena has."""
    gc.collect()
    after, n_segment_files = open_files()
    return after <= before and n_segment_files <= arena.statistics().n_segments


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hand-overs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    counts = soak(arguments.hand_overs, arguments.seed)
    print(f"{time.monotonic() - started:.0f} s, {dict(counts)}")
    print(arena.statistics())
    return 0


if __name__ == "__main__":
    sys.exit(main())
