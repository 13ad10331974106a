"""Results handed over in shared memory between a driver and its workers: right, and released."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest

from hub_jobs import Jobs, meet
from zfast import arena
from zfast.codec import decode, encode
from zfast.errors import WorkerDiedError, WorkerError
from zfast.runner.hub import Hub
from zfast.runner.lease_desk import LeaseDesk
from zfast.runner.policy import Policy
from zfast.sharing.handover import Parcel
from zfast.sharing.lease_table import DRIVER

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="peers share memory on Linux only"
)
N = 1_000_000


@pytest.fixture
def hub_jobs(monkeypatch):
    monkeypatch.syspath_prepend(str(os.path.dirname(__file__)))
    hubs = []

    def start(max_workers=2, **environment):
        hub = Hub(
            Policy(max_workers=max_workers, spares=0),
            executor="hub_executor:FunctionExecutor",
            environment=environment,
            on_note=lambda *_: None,
        )
        hubs.append(hub)
        return Jobs(hub)

    yield start
    for hub in hubs:
        hub.close()


def settled(condition, timeout=10.0):
    """Whether a condition comes true: what ends a lease travels through two processes."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        gc.collect()
        if condition():
            return True
        time.sleep(0.005)
    return False


def parcel(outcome):
    result = outcome.get(timeout=60)
    if isinstance(result, Exception):
        raise result
    return result[0]


def ones(n, _):
    return np.ones(n)


def total(array, _):
    return float(array.sum()), os.getpid(), array.flags.writeable


def test_a_result_stays_where_it_was_made(hub_jobs):
    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))
    assert result.shared_nbytes == 8 * N
    array = decode(result.open())
    assert array.sum() == N
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def scratch(argument, _):
    """Arrays that each job writes into, and returns."""
    value, n, size = argument
    arrays = vars(np).setdefault(f"scratch_{n}_{size}", [np.zeros(size) for _ in range(n)])
    for array in arrays:
        array[:] = value
    return arrays


@pytest.mark.parametrize("copied", ["copied", "shared"])
@pytest.mark.parametrize(("n", "size"), [(1, 1_000), (1, 8_000), (1, 9_000), (60, 5_000)])
def test_what_a_job_returned_is_not_what_the_next_one_makes_of_it(
    hub_jobs, monkeypatch, n, size, copied
):
    if copied == "copied":
        monkeypatch.setattr("zfast.sharing.exchange.is_supported", lambda: False)
    jobs = hub_jobs(max_workers=1)
    outcomes = [jobs.submit(scratch, (i, n, size)) for i in range(100)]
    values = [
        {float(x) for array in jobs.value(each) for x in (array.min(), array.max())}
        for each in outcomes
    ]
    assert values == [{float(i)} for i in range(100)]


def test_it_is_read_by_another_worker_and_by_its_own(hub_jobs, tmp_path):
    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))
    both = [jobs.submit(lambda a, _: (meet(tmp_path, _), total(a, _))[1], result) for _ in "12"]
    answers = [jobs.value(outcome) for outcome in both]
    assert {(s, w) for s, _, w in answers} == {(float(N), False)}
    assert len({pid for _, pid, _ in answers}) == 2


def test_every_lease_ends(hub_jobs):
    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))
    for _ in range(5):
        jobs.value(jobs.submit(total, result))
    assert jobs.hub.leases.n_held(DRIVER) == 1
    assert settled(lambda: len(list(jobs.hub.leases.leases())) == 1)
    value = decode(result.open())
    del result
    gc.collect()
    assert value[-1] == 1
    assert not settled(lambda: jobs.hub.leases.leased_nbytes == 0, timeout=0.2)
    del value
    assert settled(lambda: jobs.hub.leases.leased_nbytes == 0)
    # The maker's memory is its own again.
    assert jobs.run(lambda *_: arena.statistics().n_publications) == 0


@pytest.mark.long
def test_memory_is_used_again(hub_jobs):
    jobs = hub_jobs(max_workers=1)
    for i in range(30):
        result = parcel(jobs.submit(ones, 4 * N))
        assert decode(result.open())[i] == 1
        del result
        assert settled(lambda: jobs.hub.leases.leased_nbytes == 0)
    assert jobs.run(lambda *_: arena.statistics().mapped_nbytes) <= 200 << 20


def test_parameters_are_snapshots(hub_jobs):
    jobs = hub_jobs(max_workers=1)
    array = np.arange(N)
    busy = jobs.submit(lambda *_: time.sleep(0.3))
    outcome = jobs.submit(lambda a, _: int(a.sum()), array)
    array[:] = 0
    assert jobs.value(outcome) == N * (N - 1) // 2
    jobs.value(busy)
    assert settled(lambda: jobs.hub.leases.leased_nbytes == 0)
    assert arena.statistics().n_publications == 0


def test_a_received_value_is_passed_on_without_a_copy(hub_jobs):
    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))
    again = parcel(jobs.submit(lambda a, _: {"same": a, "half": a[: N // 2]}, result))
    places = {part.descriptor.offset for part in (*result.parts, *again.parts)}
    assert len(places) == 1
    # The driver's own look at it, given back as a parameter, is the same memory too.
    array = decode(result.open())
    packed = jobs.hub.handover.snapshot(encode([array]))
    assert [part.descriptor.key for part in packed.parts] == [result.parts[0].descriptor.key]
    assert jobs.value(jobs.submit(lambda a, _: float(a[0].sum()), packed)) == N


def test_one_result_of_memory_that_is_copied_and_memory_that_is_not(hub_jobs):
    jobs = hub_jobs(max_workers=1)

    def make(*_):
        kept = np.ones(N)
        globals()["kept"] = kept
        return [kept, np.full(N, 2.0), np.zeros(N), np.full(N, 4.0), kept[::2]]

    result = parcel(jobs.submit(make))
    assert [float(array.mean()) for array in decode(result.open())] == [1, 2, 0, 4, 1]
    assert len(result.parts) == 5
    assert result.shared_nbytes == 4.5 * 8 * N


def test_a_frame_behaves_like_any_other(hub_jobs):
    jobs = hub_jobs()

    def make(*_):
        return pd.DataFrame({"a": np.arange(N, dtype=float), "b": np.ones(N)})

    def change(frame, _):
        frame.loc[0, "a"] = 42.0
        frame["c"] = 1
        frame["b"].iloc[0]
        return frame.a.iloc[0], frame

    made = parcel(jobs.submit(make))
    first, changed = jobs.value(jobs.submit(change, made))
    assert first == 42
    assert changed.a.iloc[0] == 42
    original = decode(made.open())
    assert original.a.iloc[0] == 0
    original.loc[1, "a"] = -1.0
    assert decode(made.open()).a.iloc[1] == 1


def test_a_result_outlives_the_worker_that_made_it(hub_jobs):
    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))
    (pid,) = jobs.hub.worker_pids
    os.kill(pid, signal.SIGKILL)
    assert settled(lambda: pid not in jobs.hub.worker_pids)
    sum_, reader, _ = jobs.value(jobs.submit(total, result))
    assert (sum_, reader != pid) == (N, True)
    assert decode(result.open()).sum() == N
    assert jobs.hub.leases.n_segments == 1
    del result
    assert settled(lambda: jobs.hub.leases.n_segments == 0)


def test_a_reader_that_is_killed_holds_nothing(hub_jobs):
    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))

    def read_and_wait(array, notify):
        assert array[0] == 1
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDiedError):
        jobs.value(jobs.submit(read_and_wait, result))
    assert jobs.value(jobs.submit(total, result))[0] == N
    del result
    assert settled(lambda: jobs.hub.leases.leased_nbytes == 0)


def test_a_producer_killed_during_hand_over(hub_jobs):
    jobs = hub_jobs()

    def die_after_publishing(n, _):
        from zfast.runner.worker_leases import WorkerLeases

        pack = WorkerLeases.pack

        def pack_and_die(self, *args):
            pack(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        WorkerLeases.pack = pack_and_die
        return np.ones(n)

    with pytest.raises(WorkerDiedError):
        jobs.value(jobs.submit(die_after_publishing, N))
    assert settled(lambda: jobs.hub.leases.n_segments == 0)
    assert decode(parcel(jobs.submit(ones, N)).open()).sum() == N


def published_twice(handover):
    """Two parcels with one array: each has a lease of its own, on a publication of its own."""
    array = np.arange(N)
    block = arena.copy_in(array)
    header = encode(array).header
    return [Parcel(header, [handover.publish(block, array.nbytes)]) for _ in range(2)]


def test_a_lease_may_end_while_what_it_is_on_is_passed_on(hub_jobs, monkeypatch):
    def cached(n, _):
        import hub_executor

        if not hasattr(hub_executor, "frame"):
            hub_executor.frame = pd.DataFrame({"a": np.arange(n)})
        return hub_executor.frame

    jobs = hub_jobs(max_workers=1)
    first, second = (parcel(jobs.submit(cached, N)) for _ in range(2))
    one, other = (result.parts[0].descriptor for result in (first, second))
    assert one.offset == other.offset
    assert one.generation < other.generation
    kept = [first, decode(first.open())]  # found first, whoever asks
    del first
    frame = decode(second.open())
    lease_again = LeaseDesk.lease_again

    def end_first(desk, *found):
        kept.clear()
        gc.collect()
        return lease_again(desk, *found)

    monkeypatch.setattr(LeaseDesk, "lease_again", end_first)
    again = jobs.hub.handover.pack(encode(frame))
    monkeypatch.undo()
    assert not kept
    assert again.parts[0].descriptor == one
    assert jobs.value(jobs.submit(lambda frame, _: frame.a.sum(), again)) == frame.a.sum()


def test_a_workers_lease_may_end_while_what_it_is_on_is_returned(hub_jobs):
    jobs = hub_jobs(max_workers=1)
    first, second = published_twice(jobs.hub.handover)

    def keep(array, _):
        import hub_executor

        hub_executor.kept = [array]

    def pass_on(array, _):
        import hub_executor
        from zfast.runner.worker_leases import WorkerLeases

        pack = WorkerLeases.pack

        def pack_while_another_ends(self, *args):
            WorkerLeases.pack = pack
            packed = pack(self, *args)
            hub_executor.kept.clear()
            gc.collect()
            while self._ended:  # until the hub is told
                time.sleep(0.001)
            return packed

        WorkerLeases.pack = pack_while_another_ends
        return array

    jobs.value(jobs.submit(keep, first))
    del first
    result = parcel(jobs.submit(pass_on, second))
    assert result.shared_nbytes == N * 8
    assert (decode(result.open()) == np.arange(N)).all()


@pytest.mark.parametrize("what", ["segment_id", "generation", "offset", "nbytes", "replayed"])
def test_a_forged_descriptor_is_refused_and_its_sender_killed(hub_jobs, caplog, what):
    jobs = hub_jobs(max_workers=1)
    kept = parcel(jobs.submit(ones, N))

    def forge(what, _):
        import msgspec

        from zfast.runner.worker_leases import WorkerLeases

        pack = WorkerLeases.pack

        def pack_and_forge(self, job_id, payloads):
            done, buffers, parcels = pack(self, job_id, payloads)
            real = next(d for d in done.shared if d is not None)
            change = {
                "segment_id": {"segment_id": b"x" * 16},
                "generation": {"generation": 1 << 40, "offset": 1 << 50},
                "offset": {"offset": 1 << 40},
                "nbytes": {"nbytes": 1 << 40},
                "replayed": {"generation": 1, "offset": 1 << 19},
            }[what]
            forged = msgspec.structs.replace(real, **change)
            shared = [None if d is None else forged for d in done.shared]
            return msgspec.structs.replace(done, shared=shared), buffers, parcels

        WorkerLeases.pack = pack_and_forge
        return np.ones(100_000)

    (pid,) = jobs.hub.worker_pids
    with pytest.raises(WorkerError, match="refused"):
        jobs.value(jobs.submit(forge, what))
    assert "killed for its result" in caplog.text
    assert settled(lambda: pid not in jobs.hub.worker_pids)
    assert decode(kept.open()).sum() == N
    assert jobs.value(jobs.submit(total, kept))[0] == N


def test_a_stranger_gets_no_segment(hub_jobs, caplog):
    from zfast.errors import TransportError
    from zfast.sharing.exchange import SegmentClient

    jobs = hub_jobs()
    result = parcel(jobs.submit(ones, N))
    (lease,) = result.parts
    # This process is not a worker, though it knows the id and has the right user.
    client = SegmentClient(str(jobs.hub._segment_socket))
    with pytest.raises(TransportError, match="refuses"):
        client.fetch(lease.descriptor.segment_id)
    with open("/dev/null") as file, pytest.raises(TransportError, match="refuses"):
        client.offer(b"y" * 16, file.fileno(), 0)
    client.close()
    assert "not a worker" in caplog.text
    assert jobs.value(jobs.submit(total, result))[0] == N


@pytest.mark.parametrize("environment", [{"ZFAST_ARENA_NBYTES": "1000000"}])
def test_with_the_arena_full_results_travel(hub_jobs, environment):
    jobs = hub_jobs(**environment)
    result = parcel(jobs.submit(ones, N))
    assert result.shared_nbytes == 0
    assert decode(result.open()).sum() == N
    assert jobs.value(jobs.submit(total, result))[0] == N


def test_a_child_forked_by_a_task_reads_what_its_parent_let_go(hub_jobs):
    jobs = hub_jobs(max_workers=1)

    def fork_a_reader(array, _):
        import builtins

        go, answer = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(go[1])
            os.read(go[0], 1)  # until the parent closes it, in the next job
            os.write(answer[1], str(float(array.sum())).encode())
            os._exit(0)
        builtins.forked = (go[1], answer[0])

    def let_it_read(*_):
        import builtins

        go, answer = builtins.forked
        os.close(go)
        text = os.read(answer, 100)
        os.wait()
        return float(text)

    jobs.run(fork_a_reader, np.ones(N))
    # The worker has let go of its argument, its child has not: the driver must not write there.
    assert not settled(lambda: jobs.hub.leases.leased_nbytes == 0, timeout=0.3)
    assert np.zeros(N).sum() == jobs.run(lambda a, _: float(a.sum()), np.zeros(N))
    assert jobs.run(let_it_read) == N
    assert settled(lambda: jobs.hub.leases.leased_nbytes == 0)


def test_multiprocessing_inside_a_task_sees_a_snapshot(hub_jobs):
    jobs = hub_jobs(max_workers=1)

    def work(array, _):
        own = np.ones(N)
        context = multiprocessing.get_context("fork")
        go, answers = context.Event(), context.SimpleQueue()

        def child():
            own[0] = 7  # not seen by the parent
            go.wait()
            answers.put((float(own.sum()), float(array.sum())))

        process = context.Process(target=child)
        process.start()
        own[:] = 5  # not seen by the child
        go.set()
        seen = answers.get()
        process.join()
        return seen, own

    seen, own = jobs.run(work, np.arange(N, dtype=float))
    assert seen == (N + 6, N * (N - 1) / 2)
    assert own.sum() == 5 * N


def test_hundreds_of_hand_overs_of_random_sizes(hub_jobs):
    jobs = hub_jobs(max_workers=2)
    rng = np.random.default_rng(3)
    kept = {}

    def make(args, _):
        seed, n = args
        return np.random.default_rng(seed).random(n)

    for i in range(300):
        n = int(10 ** rng.uniform(2, 5.7))
        kept[i] = n, parcel(jobs.submit(make, (i, n)))
        if len(kept) > 12:
            seed = int(rng.choice(list(kept)))
            n, result = kept.pop(seed)
            assert np.array_equal(decode(result.open()), np.random.default_rng(seed).random(n))
            expected = float(np.random.default_rng(seed).random(n).sum())
            assert jobs.value(jobs.submit(total, result))[0] == expected
    kept.clear()
    del result
    assert settled(lambda: jobs.hub.leases.leased_nbytes == 0)


def test_results_are_read_after_the_hub_has_ended(hub_jobs):
    jobs = hub_jobs(max_workers=1)
    result = parcel(jobs.submit(ones, N))
    n_fds = len(os.listdir("/proc/self/fd"))
    jobs.hub.close()
    array = decode(result.open())
    assert array.sum() == N
    leases = jobs.hub.leases
    del result, array
    assert settled(lambda: leases.n_segments == 0)
    assert len(os.listdir("/proc/self/fd")) < n_fds
