"""Makings on a real hub, without Prefect's engine: chains, graphs, and what is left of them."""

from __future__ import annotations

import os
import queue
import random
import signal
import sys
import threading
import uuid
import weakref

import numpy as np
import pytest
from prefect import task

import hub_executor
from hub_jobs import settled, wait_for_file
from lost_hosts import WHY, Hosts
from zfast.codec import decode, encode
from zfast.errors import ResultLostError, WorkerDiedError, WorkerError
from zfast.prefect import making
from zfast.prefect.making import MAX_REMAKES, Making
from zfast.prefect.workshop import Workshop
from zfast.runner.job import Blob, JobCancelledError
from zfast.sharing.handover import Parcel

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
)
N = 16_384  # numbers of 8 bytes: large enough to be shared


@task
def work() -> None: ...


class Told:
    """What the API would be told, by task run."""

    def __init__(self):
        self.replays = []
        self.crashes = []
        self.threads = set()
        self.taken_back = []

    def report_replay(self, task_run_id, attempt, cause):
        self.threads.add(threading.current_thread().name)
        self.replays.append((task_run_id, attempt, cause))

    def report_crash(self, task_run_id, state, _):
        self.crashes.append((task_run_id, state.message))

    def report_no_replay(self, task_run_id, _):
        self.taken_back.append(task_run_id)


def total(*arguments):
    """One more than the sum of what it is given, many times over."""
    *arrays, _ = arguments
    return np.full(N, 1.0 + sum(array[0] for array in arrays))


class Node:
    """A task run in a graph: its making, and its result while somebody keeps that."""

    def __init__(self, workshop, upstream, function=total):
        self.id = uuid.uuid4()
        blob = Blob.of(b"no code")
        call = workshop.hub.handover.snapshot(encode(function))
        self.making = Making(workshop, work, self.id, blob, blob, call)
        self.answer = queue.SimpleQueue()
        self.value = 1.0 + sum(node.value for node in upstream)
        self.making.begin([(node.parcel, node.making) for node in upstream], self.answer.put)
        self.parcel = self.answer.get(timeout=60)
        self.making.keep_in(self.renew)

    def renew(self, parcel):
        if self.parcel is not None:
            self.parcel = parcel

    def drop(self):
        self.parcel = None


def asked(making):
    """What asking for a result gives, in a thread of its own."""
    answer = queue.SimpleQueue()
    making.ask(ResultLostError(WHY), answer.put)
    return answer.get(timeout=120)


def first_of(parcel):
    assert isinstance(parcel, Parcel), parcel
    return decode(parcel.open())[0]


@pytest.fixture
def hosts(monkeypatch):
    return Hosts(monkeypatch)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def workshop(start_hub, told):
    return Workshop(start_hub(max_workers=2).hub, told, None)


def chain(workshop, n):
    """The nodes of a chain of which only the last is kept."""
    nodes = [Node(workshop, [])]
    for _ in range(n - 1):
        nodes.append(Node(workshop, nodes[-1:]))
        nodes[-2].drop()
    return nodes


@pytest.mark.long
def test_a_long_chain_is_made_again_from_its_start(hosts, workshop, told):
    nodes = chain(workshop, 1000)
    hosts.lose()
    assert first_of(asked(nodes[-1].making)) == 1000
    assert first_of(nodes[-1].parcel) == 1000
    assert told.replays == [(node.id, 2, f"Its result is gone: {WHY}") for node in nodes]
    assert told.crashes == []


def test_a_long_chain_that_cannot_be_made_again_says_so_to_its_end(hosts, workshop, told):
    nodes = chain(workshop, 1000)
    hosts.lose()
    hosts.lose_new = True
    why_not = asked(nodes[-1].making)
    assert isinstance(why_not, ResultLostError)
    assert f"made again {MAX_REMAKES} times" in why_not.hint
    # All but the first were told to wait for it.
    assert len(told.crashes) == 999


def test_a_long_chain_goes_without_a_deep_stack(hosts, workshop):
    n = 20 * sys.getrecursionlimit()
    node = Node(workshop, [])
    making = weakref.ref(node.making)
    last = node.making
    for _ in range(n):
        above = Making(workshop, work, uuid.uuid4(), *[Blob(b"", b"")] * 2, Parcel(b"", []))
        above._upstream = [last]
        last = above
    del node, above
    assert making() is not None
    del last
    assert making() is None


def graph(workshop, chance, n=40):
    """Nodes in an order in which they can be made, each with up to three upstream."""
    nodes = []
    for _ in range(n):
        nodes.append(Node(workshop, chance.sample(nodes, min(len(nodes), chance.randrange(4)))))
    for node in chance.sample(nodes, n // 2):
        node.drop()
    return nodes


def all_asked(nodes):
    """What each of some nodes gives when all are asked at once."""
    answers = queue.SimpleQueue()
    askers = [
        threading.Thread(target=lambda node=node: answers.put((node, asked(node.making))))
        for node in nodes
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    return [answers.get() for _ in askers]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_in_a_graph_everything_is_made_again_once(hosts, workshop, told, seed):
    chance = random.Random(seed)
    nodes = graph(workshop, chance)
    top = Node(workshop, [node for node in nodes if node.parcel is not None])
    for node in nodes:
        node.drop()
    hosts.lose()
    assert first_of(asked(top.making)) == top.value
    assert all(attempt == 2 for _, attempt, _ in told.replays)
    assert len(told.replays) == len({task_run_id for task_run_id, _, _ in told.replays})


def test_what_nobody_keeps_is_made_again_as_often_as_it_is_needed(hosts, workshop, told):
    first = Node(workshop, [])
    many = [Node(workshop, [first]) for _ in range(2 * MAX_REMAKES)]
    first.drop()
    hosts.lose()
    assert [first_of(asked(node.making)) for node in many] == [2.0] * len(many)
    assert told.crashes == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_in_a_graph_of_which_more_and_more_is_lost_all_is_right(
    hosts, workshop, told, seed, monkeypatch
):
    monkeypatch.setattr(making, "MAX_REMAKES", 1000)
    chance = random.Random(seed)
    nodes = graph(workshop, chance)
    over = threading.Event()

    def lose():
        for _ in range(30):
            over.wait(0.02 * chance.random())
            kept = [node.parcel for node in chance.sample(nodes, 20)]
            hosts.lose(*[parcel for parcel in kept if parcel is not None])

    loser = threading.Thread(target=lose)
    loser.start()
    for round_ in range(5):
        for node, parcel in all_asked(random.Random(round_).choices(nodes, k=20)):
            again = parcel
            while again.is_lost:
                again = asked(node.making)
            try:
                assert first_of(again) == node.value
            except ResultLostError:
                assert again.is_lost
    loser.join()
    for node, parcel in all_asked(nodes):
        assert first_of(parcel) == node.value
    numbers = {node.id: [] for node in nodes}
    for task_run_id, attempt, _ in told.replays:
        numbers[task_run_id].append(attempt)
    assert all(found == list(range(2, 2 + len(found))) for found in numbers.values())
    assert told.crashes == []


def die_in_the_second(*_):
    """The number of the attempt; not that of the second, whose worker dies."""
    attempt = os.environ["ATTEMPT"]
    if attempt == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return np.full(N, float(attempt))


@pytest.mark.long
def test_attempts_are_counted_on_through_losses_and_deaths(hosts, workshop, told):
    node = Node(workshop, [], die_in_the_second)
    attempts = [first_of(node.parcel)]
    for _ in range(2):
        hosts.lose()
        attempts.append(first_of(asked(node.making)))
    assert attempts == [1, 3, 4]
    assert [attempt for _, attempt, _ in told.replays] == [2, 3, 4]
    assert [cause.partition(":")[0] for _, _, cause in told.replays] == [
        "Its result is gone",
        "Its worker died",
        "Its result is gone",
    ]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
def test_deaths_are_counted_on_when_the_input_is_lost_meanwhile(hosts, workshop, told, monkeypatch):
    first = Node(workshop, [])
    report_replay = told.report_replay

    def lose_too(*replay):
        report_replay(*replay)
        if replay[0] != first.id:
            hosts.lose()

    monkeypatch.setattr(told, "report_replay", lose_too)
    why_not = Node(workshop, [first], die).parcel
    assert isinstance(why_not, WorkerDiedError)
    assert "so did 2 before it" in why_not.message
    causes = [cause.partition(":")[0] for _, _, cause in told.replays]
    assert causes == ["Its worker died", "Its result is gone"] * 2


def test_who_had_not_begun_when_its_input_was_lost_is_in_its_first_attempt(hosts, workshop, told):
    first = Node(workshop, [])
    hosts.lose()
    assert first_of(Node(workshop, [first], die_in_the_second).parcel) == 1
    assert [task_run_id for task_run_id, _, _ in told.replays] == [first.id]


def test_a_step_that_fails_leaves_nobody_waiting(hosts, workshop, told, monkeypatch):
    node = Node(workshop, [])
    hosts.lose()

    def fail(*_):
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(told, "report_replay", fail)
        why_not = asked(node.making)
    assert isinstance(why_not, WorkerError)
    assert "out of order" in why_not.message
    assert first_of(asked(node.making)) == 1


def return_nothing_from_now_on(*_):
    hub_executor.FunctionExecutor.run = lambda *_: []
    return [0.0]


def test_a_result_without_a_payload_is_refused(start_hub, told):
    workshop = Workshop(start_hub(max_workers=1, spares=0).hub, told, None)
    Node(workshop, [], return_nothing_from_now_on)
    refused = Node(workshop, []).parcel
    assert isinstance(refused, WorkerError)
    assert "refused: a result without a payload" in refused.message
    assert first_of(Node(workshop, []).parcel) == 1  # by another worker


def test_no_step_is_on_a_thread_that_the_user_may_interrupt(hosts, workshop, told):
    nodes = chain(workshop, 3)
    hosts.lose()
    assert first_of(asked(nodes[-1].making)) == 3
    assert told.threads == {"zfast-hub"}


def test_what_is_taken_back_is_what_it_was(hosts, start_hub, told, journal, tmp_path):
    jobs = start_hub(max_workers=1, spares=0)
    nodes = chain(Workshop(jobs.hub, told, None), 3)
    held = jobs.submit(wait_for_file, (journal, "held", tmp_path / "go"))
    journal.wait_for("held", "begin")
    hosts.lose()
    answer = queue.SimpleQueue()
    nodes[-1].making.ask(ResultLostError(WHY), answer.put)
    settled(lambda: jobs.hub._dispatcher.n_queued == 1)
    jobs.hub.cancel_pending()
    assert isinstance(answer.get(timeout=60), JobCancelledError)
    # Only the first had to wait for nothing but a worker.
    assert [task_run_id for task_run_id, *_ in told.replays] == [nodes[0].id]
    assert told.taken_back == [nodes[0].id]
    assert told.crashes == []
    (tmp_path / "go").touch()
    assert jobs.value(held) == "held"
    assert first_of(asked(nodes[-1].making)) == 3
    assert [attempt for _, attempt, _ in told.replays] == [2, 3, 2, 2]


def test_after_the_end_of_the_workshop_nothing_is_kept_to_be_made_again(hosts, workshop):
    first = Node(workshop, [])
    call, above = weakref.ref(first.making._call), weakref.ref(first.making)
    second = Node(workshop, [first])
    del first
    assert call() is not None
    workshop.hub.close()
    workshop.close()
    settled(lambda: (call(), above()) == (None, None))
    assert first_of(asked(second.making)) == 2
    hosts.lose()
    assert isinstance(asked(second.making), ResultLostError)


def test_what_is_made_again_lives_as_long_as_who_needs_it(hosts, workshop):
    nodes = chain(workshop, 3)
    hosts.lose()
    parcel = asked(nodes[1].making)
    assert first_of(parcel) == 2
    settled(lambda: nodes[0].making._result() is None)
    del parcel
    settled(lambda: nodes[1].making._result() is None)
    assert first_of(asked(nodes[2].making)) == 3
