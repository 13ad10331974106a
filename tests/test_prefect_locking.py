from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect import task
from prefect.cache_policies import INPUTS
from prefect.exceptions import ConfigurationError
from prefect.locking.protocol import LockManager
from prefect.results import ResultStore
from prefect.transactions import IsolationLevel, atransaction, transaction

from zfast.errors import LockError, StoreError
from zfast.prefect import ZfastLocks, ZfastSerializer, ZfastStorage, lock_files, lock_record

#: Long enough for anything that is to happen, on a busy machine.
LONG_S = 60.0


@pytest.fixture
def locks(tmp_path: Path) -> ZfastLocks:
    return ZfastLocks(tmp_path / "locks")


class Process:
    """Another process that uses the same folder of locks."""

    def __init__(self, folder: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lock_process.py")), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self.answer() == "ready"

    def tell(self, *command: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def start(locks: ZfastLocks) -> Iterator[Callable[[], Process]]:
    processes: list[Process] = []

    def start_one() -> Process:
        processes.append(Process(locks.basepath))
        return processes[-1]

    yield start_one
    for process in processes:
        process.close()


def files(locks: ZfastLocks) -> list[str]:
    return [name for name in os.listdir(locks.basepath) if name.endswith(".lock")]


# --- what a lock manager of Prefect does -------------------------------------------------------


class Sync:
    """The methods that have an asynchronous twin, called as they are."""

    def __init__(self, locks: ZfastLocks) -> None:
        self._locks = locks

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        return self._locks.acquire_lock(*args, **kwargs)

    def wait(self, *args: Any, **kwargs: Any) -> bool:
        return self._locks.wait_for_lock(*args, **kwargs)


class Async(Sync):
    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        return asyncio.run(self._locks.aacquire_lock(*args, **kwargs))

    def wait(self, *args: Any, **kwargs: Any) -> bool:
        return asyncio.run(self._locks.await_for_lock(*args, **kwargs))


@pytest.fixture(params=[Sync, Async])
def calls(request: pytest.FixtureRequest, locks: ZfastLocks) -> Sync:
    made: Sync = request.param(locks)
    return made


def test_it_is_a_lock_manager(locks: ZfastLocks) -> None:
    assert isinstance(locks, LockManager)
    ResultStore(lock_manager=locks)


def test_one_holder_at_a_time(locks: ZfastLocks, calls: Sync) -> None:
    assert not locks.is_locked("k")
    assert calls.acquire("k", "a")
    assert locks.is_locked("k")
    assert locks.is_lock_holder("k", "a")
    assert not locks.is_lock_holder("k", "b")
    assert calls.acquire("k", "a", acquire_timeout=0), "a holder has what it has"
    assert not calls.acquire("k", "b", acquire_timeout=0)
    assert not calls.acquire("k", "b", acquire_timeout=0.05)
    assert calls.acquire("other", "b", acquire_timeout=0)
    locks.release_lock("k", "a")
    assert not locks.is_locked("k")
    assert not locks.is_lock_holder("k", "a")
    assert calls.acquire("k", "b", acquire_timeout=0)


def test_only_the_holder_releases(locks: ZfastLocks) -> None:
    with pytest.raises(LockError, match="nobody holds the lock on 'k'"):
        locks.release_lock("k", "a")
    locks.acquire_lock("k", "a")
    with pytest.raises(LockError, match=r"held by a, process .* not by b"):
        locks.release_lock("k", "b")
    assert locks.is_lock_holder("k", "a")
    # What Prefect's own managers raise.
    assert issubclass(LockError, ValueError)


def test_waiting_for_a_lock(locks: ZfastLocks, calls: Sync) -> None:
    assert calls.wait("k", timeout=0)
    locks.acquire_lock("k", "a")
    assert not calls.wait("k", timeout=0)
    assert not calls.wait("k", timeout=0.05)
    timer = threading.Timer(0.05, locks.release_lock, ("k", "a"))
    timer.start()
    assert calls.wait("k")
    timer.join()
    locks.acquire_lock("k", "a")
    timer = threading.Timer(0.05, locks.release_lock, ("k", "a"))
    timer.start()
    assert calls.acquire("k", "b")
    assert locks.is_lock_holder("k", "b")
    timer.join()


def test_a_cancelled_wait_takes_nothing(locks: ZfastLocks) -> None:
    async def run() -> None:
        await locks.aacquire_lock("k", "a")
        waiting = asyncio.create_task(locks.aacquire_lock("k", "b"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        locks.release_lock("k", "a")
        assert not locks.is_locked("k")

    asyncio.run(run())


def test_a_negative_timeout_is_refused(locks: ZfastLocks) -> None:
    with pytest.raises(ValueError, match="timeout is a number of seconds"):
        locks.acquire_lock("k", "a", acquire_timeout=-1)


@pytest.mark.parametrize("key", ["", "a/b", "../../etc", "ü\n" * 4000, "\udcff"])
def test_any_key(locks: ZfastLocks, key: str) -> None:
    assert locks.acquire_lock(key, "a")
    assert locks.is_lock_holder(key, "a")
    assert len(files(locks)) == 1
    locks.release_lock(key, "a")
    assert files(locks) == []


@pytest.mark.parametrize("pickling", [pickle, cloudpickle])
def test_a_copy_is_the_same_locks(locks: ZfastLocks, pickling: Any) -> None:
    locks.acquire_lock("k", "a")
    twin = pickling.loads(pickling.dumps(locks))
    assert twin == locks
    assert hash(twin) == hash(locks)
    assert twin != ZfastLocks(f"{locks.basepath}-other")
    assert twin.is_lock_holder("k", "a")
    twin.release_lock("k", "a")
    assert not locks.is_locked("k")


# --- leases ------------------------------------------------------------------------------------


def test_a_lease_ends(locks: ZfastLocks, calls: Sync) -> None:
    assert calls.acquire("k", "a", hold_timeout=0.05)
    assert calls.acquire("k", "b", acquire_timeout=LONG_S, hold_timeout=LONG_S)
    assert locks.is_lock_holder("k", "b")
    with pytest.raises(LockError, match="held by b"):
        locks.release_lock("k", "a")
    locks.release_lock("k", "b")
    assert files(locks) == []


def test_a_lease_that_is_over_is_not_released(locks: ZfastLocks) -> None:
    locks.acquire_lock("k", "a", hold_timeout=0)
    assert not locks.is_locked("k")
    assert not locks.is_lock_holder("k", "a")
    with pytest.raises(LockError, match="its lease was over"):
        locks.release_lock("k", "a")
    assert files(locks) == []


def test_a_lease_is_renewed(locks: ZfastLocks) -> None:
    locks.acquire_lock("k", "a", hold_timeout=LONG_S)
    locks.acquire_lock("k", "a", hold_timeout=0)
    assert not locks.is_locked("k")
    locks.acquire_lock("k", "a", hold_timeout=LONG_S)
    locks.acquire_lock("k", "a")
    record = locks._folder.look("k")
    assert record is not None
    assert record.monotonic_s is None


def test_a_lease_seen_from_another_boot_ends_by_the_wall_clock() -> None:
    past, future = 1.0, 4e9
    assert lock_record.Record(boot="other", monotonic_s=future, wall_s=past).is_over()
    assert not lock_record.Record(boot="other", monotonic_s=past, wall_s=future).is_over()
    here = lock_record.boot_id()
    # Whatever was done to the clock of this host.
    assert lock_record.Record(boot=here, monotonic_s=past, wall_s=future).is_over()
    assert not lock_record.Record(boot=here, monotonic_s=future, wall_s=past).is_over()


# --- several processes -------------------------------------------------------------------------


def test_a_lock_of_another_process(locks: ZfastLocks, start: Callable[[], Process]) -> None:
    other = start()
    assert other.ask("acquire_lock", "k", "other")
    assert locks.is_locked("k")
    assert locks.is_lock_holder("k", "other")
    assert not locks.acquire_lock("k", "me", acquire_timeout=0)
    assert not locks.wait_for_lock("k", 0)
    with pytest.raises(LockError, match=f"process {other.pid} on"):
        locks.release_lock("k", "other")
    other.ask("release_lock", "k", "other")
    assert locks.acquire_lock("k", "me", acquire_timeout=0)
    assert other.ask("is_lock_holder", "k", "me")
    assert not other.ask("acquire_lock", "k", "other", 0)


def test_a_killed_holder_holds_nothing(locks: ZfastLocks, start: Callable[[], Process]) -> None:
    other = start()
    other.ask("acquire_lock", "k", "other")
    other.ask("acquire_lock", "unwanted", "other")
    other.kill()
    # At once: no time is given.
    assert not locks.is_locked("k")
    assert locks.acquire_lock("k", "me", acquire_timeout=0)
    # Nor does it leave anything for long.
    lock_files._next_sweeps.clear()
    locks.acquire_lock("another", "me")
    locks.release_lock("another", "me")
    locks.release_lock("k", "me")
    assert files(locks) == []


def test_a_waiter_gets_the_lock_of_a_holder_that_is_killed(
    locks: ZfastLocks, start: Callable[[], Process]
) -> None:
    holder, waiter = start(), start()
    holder.ask("acquire_lock", "k", "holder")
    waiter.tell("acquire_lock", "k", "waiter", LONG_S)
    holder.kill()
    assert waiter.answer()
    assert locks.is_lock_holder("k", "waiter")


def test_a_forked_child_does_not_keep_the_lock(
    locks: ZfastLocks, start: Callable[[], Process]
) -> None:
    other = start()
    other.ask("acquire_lock", "k", "other")
    child = other.ask("fork")
    assert locks.is_locked("k"), "the child's copy is not the parent's lock"
    other.kill()
    try:
        os.kill(child, 0)
        assert locks.acquire_lock("k", "me", acquire_timeout=0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stopped_holder_loses_its_lease_and_learns_it(
    locks: ZfastLocks, start: Callable[[], Process]
) -> None:
    other = start()
    assert other.ask("acquire_lock", "k", "other", None, 0.2)
    os.kill(other.pid, signal.SIGSTOP)
    assert locks.acquire_lock("k", "me", acquire_timeout=LONG_S)
    os.kill(other.pid, signal.SIGCONT)
    assert not other.ask("is_lock_holder", "k", "other")
    assert not other.ask("acquire_lock", "k", "other", 0, LONG_S)
    assert other.ask("is_locked", "k")
    assert locks.is_lock_holder("k", "me")


def test_what_is_done_under_the_lock_is_done_by_one_at_a_time(
    locks: ZfastLocks, start: Callable[[], Process], tmp_path: Path
) -> None:
    number, times = tmp_path / "number", 100
    number.write_text("0")
    processes = [start() for _ in range(3)]
    for process in processes:
        process.tell("count", str(number), "k", times)

    def count_here(holder: str) -> None:
        for _ in range(times):
            assert locks.acquire_lock("k", holder, acquire_timeout=LONG_S, hold_timeout=LONG_S)
            number.write_text(str(int(number.read_text()) + 1))
            locks.release_lock("k", holder)

    threads = [threading.Thread(target=count_here, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.answer() for process in processes] == [None] * 3
    assert int(number.read_text()) == 5 * times
    assert files(locks) == []


# --- places ------------------------------------------------------------------------------------


def test_the_folder_is_private(locks: ZfastLocks) -> None:
    locks.acquire_lock("k", "a")
    assert os.stat(locks.basepath).st_mode & 0o777 == 0o700
    os.chmod(locks.basepath, 0o770)
    with pytest.raises(LockError, match=r"others than this user .* mode 0700"):
        locks.acquire_lock("other", "a")


def test_where_it_is_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.path.realpath(os.environ["PREFECT_HOME"])
    assert ZfastLocks().basepath == f"{home}/zfast-locks"
    monkeypatch.setenv("ZFAST_LOCKS_PATH", str(tmp_path))
    assert ZfastLocks().basepath == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert ZfastLocks("here").basepath == f"{tmp_path}/here"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    locks = ZfastLocks(tmp_path / "file" / "below")
    with pytest.raises(
        StoreError, match=r"Not a directory.*give ZfastLocks another folder"
    ) as info:
        locks.acquire_lock("k", "a")
    assert info.value.errno == errno.ENOTDIR


def test_a_file_system_without_locks(locks: ZfastLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LockError, match=r"has no locks.*on a local disk"):
        locks.acquire_lock("k", "a", acquire_timeout=0)


def test_a_removed_folder_is_made_again(locks: ZfastLocks) -> None:
    locks.acquire_lock("k", "a")
    for name in os.listdir(locks.basepath):
        os.unlink(os.path.join(locks.basepath, name))
    os.rmdir(locks.basepath)
    locks.release_lock("k", "a")
    assert not locks.is_locked("k")
    assert locks.acquire_lock("k", "a", acquire_timeout=0)


# --- transactions ------------------------------------------------------------------------------


def store(locks: ZfastLocks | None, tmp_path: Path) -> ResultStore:
    return ResultStore(
        result_storage=ZfastStorage(basepath=str(tmp_path / "results")),
        serializer=ZfastSerializer(),
        lock_manager=locks,
    )


def test_without_locks_prefect_refuses_to_serialise(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="lock manager"),
        transaction(
            key="k", store=store(None, tmp_path), isolation_level=IsolationLevel.SERIALIZABLE
        ),
    ):
        pass


@pytest.mark.parametrize("outcome", ["commit", "rollback", "found"])
def test_a_transaction_holds_its_lock_to_its_end(
    locks: ZfastLocks, tmp_path: Path, outcome: str
) -> None:
    results = store(locks, tmp_path)
    if outcome == "found":
        results.write("old", key="k")
    options = {"key": "k", "store": results, "isolation_level": IsolationLevel.SERIALIZABLE}

    def run() -> None:
        with transaction(**options) as txn:
            assert locks.is_lock_holder("k", txn._holder)
            with pytest.raises(RuntimeError, match="locked by another holder"):
                results.write("intruder", key="k")
            assert txn.is_committed() == (outcome == "found")
            txn.stage("new")
            if outcome == "rollback":
                raise KeyError("on purpose")

    async def run_async() -> None:
        async with atransaction(**options) as txn:
            assert locks.is_lock_holder("k", txn._holder)
            txn.stage("new")
            if outcome == "rollback":
                raise KeyError("on purpose")

    for each in (run, lambda: asyncio.run(run_async())):
        if outcome == "rollback":
            with pytest.raises(KeyError):
                each()
            assert not results.exists("k")
        else:
            each()
            expected = "old" if outcome == "found" else "new"
            assert store(locks, tmp_path).read("k").result == expected
        assert files(locks) == []
        if outcome == "commit":
            os.unlink(tmp_path / "results" / "k")


RACE = """
import os, sys
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.transactions import IsolationLevel
from zfast.prefect import ZfastLocks, ZfastStorage

@task(
    persist_result=True,
    result_storage=ZfastStorage(basepath={results!r}),
    result_serializer="zfast",
    cache_policy=INPUTS.configure(
        isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=ZfastLocks({locks!r})
    ),
)
{define} work(number):
    with open({ran!r}, "a") as file:
        file.write("x")
        file.flush()
        if {die!r} and os.environ.get("DIE"):
            os.kill(os.getpid(), 9)
    return number * 2

{call}
"""
CALLS = {
    "sync": "print(work(21))",
    "async": "import asyncio; print(asyncio.run(work(21)))",
}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_runs_once_though_two_processes_want_it(
    locks: ZfastLocks, tmp_path: Path, run_python: Callable[[str], str], kind: str
) -> None:
    script = RACE.format(
        results=str(tmp_path / "results"),
        locks=locks.basepath,
        ran=str(tmp_path / "ran"),
        die=False,
        define="async def" if kind == "async" else "def",
        call=CALLS[kind],
    )
    printed: list[str] = []
    threads = [
        threading.Thread(target=lambda: printed.append(run_python(script))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.strip() for line in printed] == ["42", "42"]
    assert (tmp_path / "ran").read_text() == "x"


def test_a_task_runs_again_after_the_process_that_had_its_lock_was_killed(
    locks: ZfastLocks,
    tmp_path: Path,
    run_python: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = RACE.format(
        results=str(tmp_path / "results"),
        locks=locks.basepath,
        ran=str(tmp_path / "ran"),
        die=True,
        define="def",
        call=CALLS["sync"],
    )
    with monkeypatch.context() as patch:
        patch.setenv("DIE", "1")
        with pytest.raises(AssertionError):
            run_python(script)
    assert run_python(script).strip() == "42"
    assert (tmp_path / "ran").read_text() == "xx"


def test_the_manager_of_a_policy_travels_with_the_task(locks: ZfastLocks) -> None:
    policy = INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=locks)

    @task(cache_policy=policy, persist_result=True)
    def work() -> None: ...

    twin = cloudpickle.loads(cloudpickle.dumps(work))
    assert twin.cache_policy.lock_manager == locks
