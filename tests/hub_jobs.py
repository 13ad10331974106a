"""Jobs for tests of the hub, and a journal of what they did; imported by workers too."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import random
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path

from zfast.codec import decode, encode
from zfast.errors import WorkerDiedError, WorkerError
from zfast.runner.job import Blob, Job
from zfast.sharing.handover import Parcel


class Jobs:
    """Submits functions to a hub and waits for what becomes of them."""

    def __init__(self, hub):
        self.hub = hub
        self._blob = Blob.of(b"no code")

    def submit(self, function, argument=None, client=b"", context=None):
        outcome = queue.SimpleQueue()
        pack = self.hub.handover.snapshot
        parcels = [
            pack(encode(function)),
            argument if isinstance(argument, Parcel) else pack(encode(argument)),
        ]
        context = context or self._blob
        job = Job(uuid.uuid4().bytes, self._blob, context, parcels, outcome.put, client=client)
        self.hub.submit(job)
        return outcome

    def run(self, function, argument=None):
        return self.value(self.submit(function, argument))

    @staticmethod
    def parcel(outcome):
        result = outcome.get(timeout=60)
        if isinstance(result, Exception):
            raise result
        return result[0]

    @classmethod
    def value(cls, outcome):
        return decode(cls.parcel(outcome).open())


class Journal:
    """Lines that jobs append to one file: what was begun, in which attempt, by whom.

    Writing a line is the side effect that the oracle counts.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.path.touch()

    def note(self, key, what):
        line = f"{key} {what} {os.environ.get('ATTEMPT', '0')} {os.getpid()}\n".encode()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line)
        os.close(fd)

    def lines(self, key=None, what=None):
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [
            (noted, kind, int(attempt), int(pid))
            for noted, kind, attempt, pid in lines
            if key in (None, noted) and what in (None, kind)
        ]

    def wait_for(self, key, what, n=1, timeout=30.0):
        """The pid of the worker that noted it for the ``n``-th time."""
        deadline = time.monotonic() + timeout
        while len(found := self.lines(key, what)) < n:
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.002)
        return found[n - 1][3]


def simple(argument, _):
    """Begin, take a while, end."""
    journal, key, duration_s = argument
    journal.note(key, "begin")
    time.sleep(duration_s)
    journal.note(key, "end")
    return key


def hang_once(argument, _):
    """Waits for ever in the first attempt only."""
    journal, key = argument
    journal.note(key, "begin")
    if os.environ["ATTEMPT"] == "1":
        time.sleep(600)
    journal.note(key, "end")
    return int(os.environ["ATTEMPT"])


def no_descriptors(*_, **__):
    """In place of what opens something: this process has too many open files."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def settled(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
    return value


def wait_for_file(argument, _):
    """A job that ends when the test wants it to."""
    journal, key, path = argument
    journal.note(key, "begin")
    while not path.exists():
        time.sleep(0.005)
    journal.note(key, "end")
    return key


def meet(folder, _):
    """Wait for another worker that does this: each of two jobs has one of its own then."""
    (folder / f"{os.getpid()}").touch()
    settled(lambda: len(os.listdir(folder)) >= 2, 60)
    return os.getpid()


def wait_to_be_let_go(folder, _):
    """A job that ends when there is a file of its worker's name, or one for everybody."""
    (folder / f"{os.getpid()}").touch()
    while not ((folder / f"{os.getpid()}.go").exists() or (folder / "all.go").exists()):
        time.sleep(0.005)


@contextlib.contextmanager
def only(jobs, pids, folder):
    """Let no worker but those with these pids be given jobs. All of them must be idle."""
    place = Path(tempfile.mkdtemp(dir=folder))
    if jobs.hub._remote is not None:  # who is silent for a moment is not given what holds it
        settled(lambda: not any(host.is_silent for host in jobs.hub._remote.hosts), 60)
    idle = [worker for worker in jobs.hub._staffing.workers if worker.available]
    n_local = min(sum(worker.is_local for worker in idle), jobs.hub._policy.max_workers)
    n_idle = n_local + sum(not worker.is_local for worker in idle)  # the others are spares
    held = [jobs.submit(wait_to_be_let_go, place) for _ in range(n_idle)]
    try:
        settled(lambda: len(list(place.iterdir())) == n_idle)
        for pid in pids:
            (place / f"{pid}.go").touch()
        settled(lambda: sum(not outcome.empty() for outcome in held) == len(pids))
        yield
    finally:
        (place / "all.go").touch()
        for outcome in held:
            jobs.value(outcome)


def run_by(jobs, pids, folder, function, argument=None):
    """Have one of these workers run a job; its result as it came."""
    with only(jobs, pids, folder):
        return jobs.parcel(jobs.submit(function, argument))


def appeared(folder, n=1, timeout=30.0):
    """The name of a file that appears in a folder; the names of ``n`` if there are to be more."""
    deadline = time.monotonic() + timeout
    while len(names := sorted(path.name for path in folder.iterdir())) < n:
        assert time.monotonic() < deadline, names
        time.sleep(0.005)
    return names[0] if n == 1 else names


def check(journal, results, max_worker_deaths=3):
    """The oracle: every job has one result or a named cause, and was not begun too often."""
    for key, result in results.items():
        begun = [attempt for _, _, attempt, _ in journal.lines(key, "begin")]
        assert begun == sorted(set(begun)), f"{key}: an attempt was begun twice: {begun}"
        assert len(begun) <= max_worker_deaths
        if isinstance(result, Exception):
            assert isinstance(result, WorkerDiedError), result
            assert "killed by" in str(result)
        else:
            assert result == key
            assert journal.lines(key, "end"), f"{key} has a result but did not end"
            last_end = journal.lines(key, "end")[-1]
            assert last_end[2] == begun[-1], f"{key} was run again after it had ended"


#: In a storm chance alone may hit a job three times: so often workers may die of one there.
STORM_DEATHS = 10


def storm(jobs, journal, n_jobs, duration_s, kill_every_s, seed, only_ready=False):
    """Submit jobs while random workers are killed; check with the oracle; how many were killed."""
    chance = random.Random(seed)
    over = threading.Event()
    killed = []

    def kill():
        while not over.wait(kill_every_s):
            workers = list(jobs.hub._pool)
            pids = [w.process.pid for w in workers if w.ready or not only_ready]
            if pids:
                killed.append(chance.choice(pids))
                try:
                    os.kill(killed[-1], signal.SIGKILL)
                except ProcessLookupError:
                    killed.pop()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        outcomes = {
            f"j{i}": jobs.submit(simple, (journal, f"j{i}", duration_s * chance.random()))
            for i in range(n_jobs)
        }
        results = {key: outcome.get(timeout=120) for key, outcome in outcomes.items()}
    finally:
        over.set()
        killer.join()
    results = {
        key: result if isinstance(result, WorkerError) else decode(result[0].open())
        for key, result in results.items()
    }
    check(journal, results, STORM_DEATHS)
    return len(killed), results
