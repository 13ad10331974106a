"""A hub, and the foremen of two hosts that take results from each other."""

from __future__ import annotations

from direct_jobs import MIB, make, take
from foremen import joined, worker_pids
from hub_jobs import run_by
from zfast.codec import decode

#: What stays where it was made.
LARGE = 16 * MIB


class TwoHosts:
    """A hub and the foremen of two hosts, each with its own workers.

    Attributes:
        first, second: The foremen.
    """

    def __init__(
        self, jobs, foremen, journal, folder, n_workers=1, options=(), environments=({}, {})
    ):
        self.jobs, self.journal, self.folder = jobs, journal, folder
        self.first, self.second = (
            foremen.start(
                jobs.hub.endpoint, *options, workers=n_workers, key=f"worker-{n}", **environment
            )
            for n, environment in enumerate(environments, 1)
        )
        joined(jobs, 2 * n_workers)

    def make(self, host, seed=0, nbytes=LARGE):
        """The result of a job that one host has run."""
        return run_by(
            self.jobs,
            worker_pids(self.jobs, host.pid),
            self.folder,
            make,
            (self.journal, f"make-{seed}", seed, nbytes),
        )

    def take(self, host, result, seed=0, nbytes=LARGE):
        """Whether it comes right to a job of one host."""
        return self.run(host, take(self.journal, f"take-{seed}", seed, nbytes), result)

    def run(self, host, function, argument=None):
        workers = worker_pids(self.jobs, host.pid)
        return decode(run_by(self.jobs, workers, self.folder, function, argument).open())

    def n_begun(self, key):
        return len(self.journal.lines(key, "begin"))
