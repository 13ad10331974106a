"""What a worker's main thread is to do next."""

from __future__ import annotations

import os

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


def test_a_job_that_comes_back_to_its_worker_and_dies_there_counts_as_begun(
    start_hub, journal, tmp_path
):
    from hub_jobs import check, hang_once, settled, simple, wait_for_file

    jobs = start_hub(max_workers=1, spares=0)
    gate = tmp_path / "gate"

    def held():
        (worker,) = jobs.hub._pool
        return len(jobs.hub._dispatcher.held_by(worker))

    for n in range(3):  # the code is known to be short: one job waits behind another
        assert jobs.run(simple, (journal, f"short-{n}", 0)) == f"short-{n}"
    first = jobs.submit(wait_for_file, (journal, "first", gate))
    journal.wait_for("first", "begin")
    outcome = jobs.submit(hang_once, (journal, "k"))
    settled(lambda: held() == 2)  # handed out in advance
    settled(lambda: jobs.hub._dispatcher.n_queued == 1)  # taken back: the first takes too long
    gate.touch()
    assert jobs.value(first) == "first"
    pid = journal.wait_for("k", "begin")
    os.kill(pid, 9)
    assert jobs.value(outcome) == 2
    check(journal, {f"short-{n}": f"short-{n}" for n in range(3)})
    assert [attempt for *_, attempt, _ in journal.lines("k", "begin")] == [1, 2]
