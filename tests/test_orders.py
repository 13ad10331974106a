"""What a worker's main thread is to do next."""

from __future__ import annotations

import os
import signal

import pytest

from hub_jobs import hang_once, settled, simple, wait_for_file
from zfast.runner.job import Blob
from zfast.runner.orders import Order, WaitingOrders

BLOB = Blob.of(b"")


def order(job, serial):
    return Order((job, 1), serial, BLOB, BLOB, [])


def test_orders_come_in_order_until_the_end():
    orders = WaitingOrders()
    first, second = order(b"a", 1), order(b"b", 2)
    for item in (first, second, None):
        orders.put(item)
    assert [orders.get() for _ in range(3)] == [first, second, None]


def test_what_is_taken_back_is_not_begun_and_what_is_begun_is_not_taken_back():
    orders = WaitingOrders()
    first, second = order(b"a", 1), order(b"b", 2)
    orders.put(first)
    orders.put(second)
    assert orders.take_back(first.attempt)
    assert not orders.take_back(first.attempt)
    assert orders.get() is second
    assert not orders.take_back(second.attempt)


def test_an_attempt_that_was_taken_back_and_comes_again_is_begun_under_its_new_serial():
    # Under its old one the hub would think, should this worker die, that it was never begun.
    orders = WaitingOrders()
    first, again = order(b"a", 1), order(b"a", 2)
    orders.put(first)
    assert orders.take_back(first.attempt)
    orders.put(again)
    orders.put(None)
    assert orders.get() is again
    assert orders.get() is None


@pytest.fixture
def gate(start_hub, tmp_path):
    """What a job waits for: there at the latest when hubs are closed, which wait for the jobs."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def test_a_job_that_comes_back_to_its_worker_and_dies_there_counts_as_begun(
    start_hub, journal, gate, monkeypatch
):
    monkeypatch.setattr("zfast.runner.scheduling.SHORT_S", 60.0)
    for name in ("placement", "dispatcher"):  # long enough to be handed out in advance before
        monkeypatch.setattr(f"zfast.runner.{name}.RECALL_AFTER_S", 2.0)
    jobs = start_hub(max_workers=1, spares=0)
    for n in range(3):  # the code is known to be short: one job waits behind another
        assert jobs.run(simple, (journal, f"short-{n}", 0)) == f"short-{n}"
    first = jobs.submit(wait_for_file, (journal, "first", gate))
    journal.wait_for("first", "begin")
    outcome = jobs.submit(hang_once, (journal, "k"))
    (worker,) = jobs.hub._pool
    attempts = jobs.hub._dispatcher._attempts
    settled(lambda: attempts.n_assigned(worker.routing_id) == 5)  # handed out in advance
    settled(lambda: jobs.hub._dispatcher.n_queued == 1)  # taken back: the first takes too long
    gate.touch()
    assert jobs.value(first) == "first"
    os.kill(journal.wait_for("k", "begin"), signal.SIGKILL)
    assert jobs.value(outcome) == 2
    assert [attempt for *_, attempt, _ in journal.lines("k", "begin")] == [1, 2]
