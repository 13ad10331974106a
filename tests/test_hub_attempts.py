"""Attempts and queues, without a process: no job is lost, none ends twice, only holders count."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from zfast.errors import ConfigError
from zfast.runner.attempts import AttemptTable
from zfast.runner.job import Blob, Job
from zfast.runner.policy import Policy
from zfast.runner.scheduling import SHORT_S, Durations, FairQueue

MAX_DEATHS = 3
WORKERS = [b"a", b"b", b"c"]


def make_job(number, client=b"", code=b"", **earlier):
    blob = Blob(code, b"")
    return Job(b"%16d" % number, blob, blob, [], lambda _: None, client=client, **earlier)


class Attempts(RuleBasedStateMachine):
    """A table beside the simplest thing that could be right."""

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self):
        super().__init__()
        self.table = AttemptTable(MAX_DEATHS)
        self.known = {}
        self.queued = set()
        self.holder = {}
        self.deaths = {}
        self.attempt = {}
        self.order = {worker: [] for worker in WORKERS}
        self.ended = []

    @rule(target=jobs, first_attempt=st.integers(1, 3), n_deaths=st.integers(0, MAX_DEATHS - 1))
    def add(self, first_attempt, n_deaths):
        deaths = ["killed before"] * n_deaths
        job = make_job(len(self.known), first_attempt=first_attempt, deaths=deaths)
        self.known[job.job_id] = job
        self.table.add(job)
        with pytest.raises(ValueError, match="before"):
            self.table.add(job)
        self.queued.add(job)
        self.deaths[job], self.attempt[job] = n_deaths, first_attempt
        return job

    @rule(target=claims, job=jobs, worker=st.sampled_from(WORKERS))
    def assign(self, job, worker):
        if job not in self.queued:
            with pytest.raises(ValueError, match="not queued"):
                self.table.assign(job, worker, nbytes=1, now=0.0)
        else:
            assignment = self.table.assign(job, worker, nbytes=1, now=0.0)
            assert assignment.attempt == self.attempt[job]
            self.queued.discard(job)
            self.holder[job] = worker
            self.order[worker].append(job)
        return job.job_id, self.attempt[job], worker

    def counts(self, claim):
        job_id, attempt, worker = claim
        job = self.known[job_id]
        return self.holder.get(job) == worker and self.attempt[job] == attempt

    @rule(claim=claims)
    def finish(self, claim):
        job = self.known[claim[0]]
        ended = self.table.finish(*claim, now=1.0)
        assert (ended is not None) == self.counts(claim)
        if ended:
            assert ended.job is job
            self.release(job)
            self.ended.append(job)

    @rule(claim=claims)
    def give_back(self, claim):
        job = self.known[claim[0]]
        given_back = self.table.give_back(*claim)
        assert given_back is (job if self.counts(claim) else None)
        if given_back:
            self.release(job)
            self.queued.add(job)

    def release(self, job):
        self.order[self.holder.pop(job)].remove(job)

    @rule(worker=st.sampled_from(WORKERS), n_begun=st.integers(0, 3))
    def end_worker(self, worker, n_begun):
        held = self.table.held_by(worker)
        assert [assignment.job for assignment in held] == self.order[worker]
        begun = held[:n_begun]
        last = begun[-1].serial if begun else 0
        fallout = self.table.end_worker(worker, last, "killed")
        ran = [assignment.job for assignment in begun]
        for job in list(self.order[worker]):
            self.release(job)
            if job in ran:
                self.attempt[job] += 1
                self.deaths[job] += job is ran[-1]
            if self.deaths[job] >= MAX_DEATHS:
                self.ended.append(job)
            else:
                self.queued.add(job)
        given_up = [job for job, _ in fallout.given_up]
        assert all(len(deaths) == MAX_DEATHS for _, deaths in fallout.given_up)
        assert fallout.begun == [job for job in ran if job not in given_up]
        assert fallout.untouched == [assignment.job for assignment in held[n_begun:]]

    @rule(job=consumes(jobs))
    def forget(self, job):
        self.table.forget(job)
        self.queued.discard(job)
        if job in self.holder:
            self.release(job)
        if job not in self.ended:
            self.ended.append(job)

    @invariant()
    def every_job_is_somewhere_once(self):
        unfinished = set(self.known.values()) - set(self.ended)
        assert set(self.table) == unfinished == self.queued | set(self.holder)
        assert len(self.ended) == len(set(self.ended))
        assert self.table.inflight_nbytes == len(self.holder)
        assert all(self.table.is_suspect(job) == (self.deaths[job] > 0) for job in unfinished)


TestAttempts = Attempts.TestCase


@given(st.lists(st.integers(0, 3), max_size=40))
def test_clients_take_turns_and_keep_their_order(clients):
    queue = FairQueue()
    jobs = [make_job(number, b"%d" % client) for number, client in enumerate(clients)]
    for job in jobs:
        queue.put(job)
    taken = []
    while queue:
        first = queue.first()
        taken.append(queue.take())
        assert taken[-1] is first
    for client in {job.client for job in jobs}:
        own = [job for job in jobs if job.client == client]
        assert [job for job in taken if job.client == client] == own
    waiting = {client: clients.count(client) for client in clients}
    for start in range(len(taken)):
        # In a row of turns no client comes twice while another waits.
        turn = [int(job.client) for job in taken[start : start + 2]]
        if len(turn) == 2 and turn[0] == turn[1]:
            assert all(n == 0 for client, n in waiting.items() if client != turn[0])
        waiting[turn[0]] -= 1


@given(st.integers(0, 10), st.integers(0, 5))
def test_what_is_put_back_comes_first_in_its_order(n_waiting, n_back):
    queue = FairQueue()
    for number in range(n_waiting):
        queue.put(make_job(number))
    back = [make_job(100 + number) for number in range(n_back)]
    queue.put_back(back)
    assert len(queue) == n_waiting + n_back
    drained = list(queue.drain())
    assert drained[:n_back] == back
    assert len(queue) == 0


def test_only_codes_known_to_be_short_are_short():
    durations = Durations()
    assert not durations.is_short(b"code")
    durations.add(b"code", SHORT_S / 10)
    assert durations.is_short(b"code")
    durations.add(b"code", 100 * SHORT_S)
    assert not durations.is_short(b"code")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"max_workers": -1}, "max_workers must be a whole number from 0 on, not -1"),
        ({"max_workers": True}, "max_workers"),
        ({"min_workers": -1}, "min_workers must be a whole number from 0 on"),
        ({"min_workers": 3}, "min_workers is 3, more than max_workers, 2"),
        ({"spares": 1.5}, "spares"),
        ({"idle_timeout_s": 0}, "idle_timeout_s must be a positive number of seconds"),
        ({"lease_s": float("nan")}, "lease_s"),
        ({"lease_s": "60"}, "lease_s"),
        ({"max_tasks_per_worker": 0}, "max_tasks_per_worker"),
        ({"max_worker_nbytes": 2.0}, "max_worker_nbytes"),
        ({"max_worker_deaths": None}, "max_worker_deaths"),
    ],
)
def test_settings_are_checked_by_name(setting, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Policy(**{"max_workers": 2, **setting})
