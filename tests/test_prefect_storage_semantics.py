"""What Prefect promises of results, with zfast's storage and serializer, against a real API."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect import flow, task
from prefect.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CachePolicy,
)
from prefect.client.orchestration import get_client
from prefect.context import hydrated_context, serialize_context
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import Serializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.transactions import CommitMode, IsolationLevel, transaction

from zfast import ZfastTaskRunner
from zfast.errors import CodecError, KeyNotFoundError, ObjectCorruptError
from zfast.prefect import ZfastLocks, ZfastStorage, run_leases, tickets
from zfast.store import FolderStore
from zfast.store.format import MAGIC
from zfast.store.retention import collect

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def block(tmp_path: Path) -> ZfastStorage:
    return ZfastStorage(basepath=str(tmp_path / "results"))


def keys(block: ZfastStorage) -> list[str]:
    return list(FolderStore(block.basepath).list())


def options(block: ZfastStorage, **more: Any) -> dict[str, Any]:
    return {
        "result_storage": block,
        "result_serializer": "zfast",
        "persist_result": True,
        "cache_result_in_memory": False,
        **more,
    }


class Counted:
    """Counts how often it is rebuilt."""

    rebuilt = 0

    def __init__(self) -> None:
        self.array = np.arange(100_000)

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).rebuilt += 1
        vars(self).update(state)


# --- which calls run, and which are read from the cache ----------------------------------------

#: Policy, and how often two calls with the same input and one with another run, all in one flow,
#: which is itself run twice.
POLICIES: dict[str, tuple[CachePolicy, int]] = {
    "DEFAULT": (DEFAULT, 4),  # the run is in the key
    "INPUTS": (INPUTS, 2),
    "INPUTS - other": (INPUTS - "other", 2),
    "TASK_SOURCE": (TASK_SOURCE, 1),
    "RUN_ID": (RUN_ID, 2),
    "FLOW_PARAMETERS": (FLOW_PARAMETERS, 1),
    "INPUTS + TASK_SOURCE": (INPUTS + TASK_SOURCE, 2),
    "INPUTS + RUN_ID": (INPUTS + RUN_ID, 4),
    "NO_CACHE": (NO_CACHE, 6),
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_cache_policies(block: ZfastStorage, name: str, asynchronous: bool) -> None:
    policy, expected = POLICIES[name]
    ran: list[int] = []

    def make(number: int, other: int) -> pd.DataFrame:
        ran.append(number)
        return pd.DataFrame({"a": np.full(10, number)})

    async def make_async(number: int, other: int) -> pd.DataFrame:
        return make(number, other)

    if asynchronous:
        made: Any = task(cache_policy=policy, **options(block))(make_async)

        @flow(name="policies")
        async def run_async(size: int) -> list[pd.DataFrame]:
            return [await made(1, 0), await made(1, 0), await made(2, 0)]

        results = [asyncio.run(run_async(3)) for _ in range(2)]
    else:
        made = task(cache_policy=policy, **options(block))(make)

        @flow(name="policies")
        def run(size: int) -> list[pd.DataFrame]:
            return [made(1, 0), made(1, 0), made(2, 0)]

        results = [run(3) for _ in range(2)]
    assert len(ran) == expected
    for frames in results:
        assert frames[0]["a"].tolist() == frames[1]["a"].tolist() == [1] * 10
    # Prefect writes nothing under no key.
    assert bool(keys(block)) == (policy != NO_CACHE)


def test_cache_key_fn_and_its_key(block: ZfastStorage) -> None:
    ran: list[int] = []

    @task(cache_key_fn=lambda _, inputs: f"my/key-{inputs['x']}", **options(block))
    def make(x: int) -> int:
        ran.append(x)
        return x * 2

    assert [make(1), make(1), make(2)] == [2, 2, 4]
    assert ran == [1, 2]
    assert keys(block) == ["my/key-1", "my/key-2"]


def test_result_storage_key(block: ZfastStorage) -> None:
    @task(result_storage_key="of-{parameters[x]}/{flow_run.flow_name}", **options(block))
    def make(x: int) -> np.ndarray[Any, Any]:
        return np.arange(x)

    flow(lambda: make(3), name="keyed")()
    assert keys(block) == ["of-3/keyed"]
    store = ResultStore(result_storage=block, serializer=Serializer(type="zfast"))
    assert store.read("of-3/keyed").result.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["folder", "zfast"])
def test_key_storage(block: ZfastStorage, tmp_path: Path, kind: str) -> None:
    where = tmp_path / "keys"
    storage: Any = where if kind == "folder" else ZfastStorage(basepath=str(where))
    ran: list[int] = []

    @task(cache_policy=INPUTS.configure(key_storage=storage), **options(block))
    def make(x: int) -> Counted:
        ran.append(x)
        return Counted()

    Counted.rebuilt = 0
    assert make(1).array.sum() == make(1).array.sum()
    assert ran == [1]
    assert Counted.rebuilt == 1
    assert len(list(where.glob("[!.]*"))) == len(keys(block)) == 1


def evict_all(block: ZfastStorage) -> None:
    store = FolderStore(block.basepath)
    store.leases.let_go()  # runs are over
    collect(store, budget_nbytes=0)
    assert keys(block) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_evicted_result_whose_key_is_kept_elsewhere_is_computed_again(
    block: ZfastStorage, tmp_path: Path, asynchronous: bool
) -> None:
    ran: list[int] = []
    key_storage = ZfastStorage(basepath=str(tmp_path / "keys"))
    policy = INPUTS.configure(key_storage=key_storage)

    def make(x: int) -> np.ndarray[Any, Any]:
        ran.append(x)
        return np.full(100_000, x)

    async def make_async(x: int) -> np.ndarray[Any, Any]:
        return make(x)

    made: Any = task(cache_policy=policy, **options(block))(make_async if asynchronous else make)

    def run() -> int:
        result = asyncio.run(made(3)) if asynchronous else made(3)
        return int(result.sum())

    assert run() == 300_000
    evict_all(block)
    assert len(keys(key_storage)) == 1
    assert [run(), run()] == [300_000, 300_000]
    assert ran == [3, 3]


def test_a_result_that_was_found_by_a_key_kept_elsewhere_is_held(
    block: ZfastStorage, tmp_path: Path
) -> None:
    metadata_storage = ZfastStorage(basepath=str(tmp_path / "keys"))
    serializer = Serializer(type="zfast")
    store = ResultStore(
        result_storage=block, metadata_storage=metadata_storage, serializer=serializer
    )
    store.write(np.zeros(100_000), key="k")
    FolderStore(block.basepath).leases.let_go()
    assert store.exists("k")
    assert collect(FolderStore(block.basepath), budget_nbytes=0).n_held == 1
    evict_all(block)
    assert not store.exists("k")
    assert not asyncio.run(store.aexists("k"))
    assert metadata_storage.read_path("k"), "who asks for the metadata themselves gets them"


def test_an_evicted_result_whose_key_is_kept_by_another_block_says_what_to_do(
    block: ZfastStorage, tmp_path: Path
) -> None:
    @task(cache_policy=INPUTS.configure(key_storage=tmp_path / "keys"), **options(block))
    def make(x: int) -> int:
        return x

    assert make(3) == 3
    evict_all(block)
    with pytest.raises(KeyNotFoundError, match=r"key_storage.*refresh_cache=True"):
        make(3)
    assert make.with_options(refresh_cache=True)(3) == 3
    assert make(3) == 3


def test_expiration(block: ZfastStorage) -> None:
    ran: list[str] = []

    def make(name: str) -> str:
        ran.append(name)
        return name

    for_ever = task(cache_policy=INPUTS, cache_expiration=timedelta(days=1), **options(block))(make)
    for_once = for_ever.with_options(cache_expiration=timedelta(microseconds=1))
    for _ in range(2):
        assert for_ever("a") == "a"
    for _ in range(2):
        assert for_once("b") == "b"
    assert ran == ["a", "b", "b"]


def test_refresh_cache(block: ZfastStorage) -> None:
    ran: list[int] = []

    @task(cache_policy=INPUTS, **options(block))
    def make(x: int) -> int:
        ran.append(x)
        return len(ran)

    assert [make(1), make(1)] == [1, 1]
    assert make.with_options(refresh_cache=True)(1) == 2
    assert make(1) == 2
    assert len(keys(block)) == 1


def test_a_cached_run_and_a_failed_run_have_results(block: ZfastStorage) -> None:
    @task(cache_policy=INPUTS, **options(block))
    def make(x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        return x

    make(1)
    cached: Any = make(1, return_state=True)
    assert cached.name == "Cached"
    assert asyncio.run(ResultStore._from_metadata(cached.data.metadata)).result == 1
    failed: Any = make(-1, return_state=True)
    assert failed.is_failed()
    with pytest.raises(ValueError, match="negative"):
        failed.result()
    assert asyncio.run(ResultStore._from_metadata(failed.data.metadata)).result.args == (
        "negative",
    )
    assert make(-1, return_state=True).name == "Failed", "an exception is stored, and not cached"


# --- transactions ------------------------------------------------------------------------------


def test_tasks_of_a_transaction_are_committed_or_not_as_one(block: ZfastStorage) -> None:
    rolled_back: list[str] = []

    @task(cache_policy=INPUTS, **options(block))
    def make(x: int) -> np.ndarray[Any, Any]:
        return np.full(100_000, x)

    @make.on_rollback
    def undo(txn: Any) -> None:
        rolled_back.append(txn.key)

    @flow
    def run(fail: bool) -> None:
        with transaction(commit_mode=CommitMode.LAZY):
            make(1)
            make(2)
            if fail:
                raise RuntimeError("on purpose")

    assert run(True, return_state=True).is_failed()
    assert (len(rolled_back), keys(block)) == (2, [])
    assert run(False, return_state=True).is_completed()
    assert (len(rolled_back), len(keys(block))) == (2, 2)
    assert tickets._staged == {}


def test_a_crash_between_staging_and_writing_leaves_nothing(
    block: ZfastStorage, run_python: Callable[[str], str]
) -> None:
    script = f"""
import os
import numpy as np
from prefect.results import ResultStore
from prefect.transactions import transaction
from zfast.prefect import ZfastSerializer, ZfastStorage

class Dying(ZfastStorage):
    def write_path(self, path, content, _sync=None):
        assert content.find(b"zf1:") > 0
        os.kill(os.getpid(), 9)

storage = Dying(basepath={block.basepath!r})
store = ResultStore(result_storage=storage, serializer=ZfastSerializer())
with transaction(key="k", store=store) as txn:
    txn.stage(np.zeros(1_000_000))
"""
    with pytest.raises(AssertionError):
        run_python(script)
    assert not os.path.exists(block.basepath) or keys(block) == []
    store = ResultStore(result_storage=block, serializer=Serializer(type="zfast"))
    assert not store.exists("k")


# --- what is read, and what stays in memory ----------------------------------------------------

STORES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "zfast": ("zfast", lambda path: ZfastStorage(basepath=str(path))),
    "inline": ("zfast/inline", lambda path: LocalFileSystem(basepath=str(path))),
    "inline in a zfast storage": ("zfast/inline", lambda path: ZfastStorage(basepath=str(path))),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ResultStore:
    serializer, make_storage = STORES[request.param]
    return ResultStore(
        result_storage=make_storage(tmp_path / "results"),
        serializer=Serializer(type=serializer),
        cache_result_in_memory=False,
    )


def test_exists_never_reads_the_value(store: ResultStore) -> None:
    """Fails when Prefect looks for results in another way: see `internals.is_existence_check`."""
    store.write(Counted(), key="k")
    Counted.rebuilt = 0
    assert store.exists("k")
    assert asyncio.run(store.aexists("k"))
    assert not store.exists("other")
    assert Counted.rebuilt == 0
    assert store.read("k").result.array.sum() == np.arange(100_000).sum()
    assert Counted.rebuilt == 1


def test_without_knowing_prefect_exists_reads_all(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(Counted(), key="k")
    monkeypatch.setattr("prefect.__version__", "4.0.0")
    Counted.rebuilt = 0
    assert store.exists("k")
    assert Counted.rebuilt == 1


def test_a_result_that_was_cut_off_does_not_exist(store: ResultStore, tmp_path: Path) -> None:
    store.write(Counted(), key="k")
    file = tmp_path / "results" / "k"
    whole = file.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:-1], whole[:100], b""):
        file.write_bytes(cut)
        assert not store.exists("k")
    # Cut inside of the JSON string, which then is one again.
    if b"zfast/inline" in whole and isinstance(store.result_storage, LocalFileSystem):
        for n in (1, 2, 4, 100_000):
            file.write_bytes(whole[: -2 - n] + b'"}')
            assert not store.exists("k")


def descriptors() -> set[str]:
    """What this process has open of files: names, but for the sockets of Prefect's clients."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("/"):
            found.add(target)
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
@pytest.mark.parametrize("nested", [False, True])
def test_nothing_is_held_after_a_flow(block: ZfastStorage, tmp_path: Path, nested: bool) -> None:
    locks = ZfastLocks(tmp_path / "locks")
    policy = INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=locks)
    store = FolderStore(block.basepath)

    @task(**options(block, cache_policy=policy))
    def make(number: int) -> np.ndarray[Any, Any]:
        return np.full(100_000, number)

    @flow
    def inner() -> int:
        return int(make(1)[0]) + int(make(2)[0])

    @flow
    def outer() -> int:
        total = inner() if nested else int(make(1)[0]) + int(make(2)[0])
        assert collect(store, budget_nbytes=0).n_held == 2  # its own run is still live
        return total

    assert outer() == 3
    assert tickets._staged == {}
    assert os.listdir(tmp_path / "locks") == ["guard"]
    ours = {name for name in descriptors() if name.startswith(str(tmp_path))}
    assert ours <= {f"{block.basepath}/.zfast/leases/gate"}
    assert len(keys(block)) == 2
    done = collect(store, budget_nbytes=0)
    assert (done.n_held, keys(block)) == (0, [])


def test_what_workers_use_is_held_until_the_flow_run_has_ended(block: ZfastStorage) -> None:
    store = FolderStore(block.basepath)

    @task(**options(block, cache_policy=INPUTS))
    def make(x: int) -> int:
        return x

    @task
    def submit(x: int) -> int:
        return int(make.submit(x).result())

    @flow(task_runner=ZfastTaskRunner(max_workers=1))
    def run() -> int:
        # Submitted in a task, it comes to the same worker in another context than by itself.
        assert [make.submit(1).result(), submit(2), make.submit(3).result()] == [1, 2, 3]
        return collect(store, budget_nbytes=0).n_held

    assert run() == 3
    assert collect(store, budget_nbytes=0).n_held == 0
    assert keys(block) == []


def test_elsewhere_a_flow_run_is_over_when_another_is_worked_for(block: ZfastStorage) -> None:
    store = FolderStore(block.basepath)
    one, two, three = (flow(serialize_context, name=name)() for name in ("one", "two", "three"))
    for key in "ab":
        with hydrated_context(one):
            block.write_path(key, b"")
    assert collect(store, budget_nbytes=0).n_held == 2
    with hydrated_context(two):
        block.write_path("c", b"")
    collect(store, budget_nbytes=0)
    assert keys(block) == ["c"]
    with hydrated_context(three):
        run_leases.take_up_run()  # as a worker does, whether its tasks use a store or not
    assert collect(store, budget_nbytes=0).n_held == 0


def test_no_cache_keeps_the_memory_of_a_result(block: ZfastStorage) -> None:
    gone: list[weakref.ref[Any]] = []

    @task(cache_policy=INPUTS, **options(block))
    def make(x: int) -> np.ndarray[Any, Any]:
        array = np.full(100_000, x)
        gone.append(weakref.ref(array))
        return array

    @flow(cache_result_in_memory=False)
    def run() -> None:
        for x in range(5):
            assert make(x)[0] == x
            kept = make(x)
            gone.append(weakref.ref(kept))

    run()
    gc.collect()
    assert len(gone) == 10
    assert [ref() for ref in gone] == [None] * 10


# --- inline ------------------------------------------------------------------------------------


class Bucket(LocalFileSystem):
    """A block that is not one of ours and keeps whatever bytes it is given."""

    _block_type_slug = "zfast-test-bucket"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_result_of_a_flow_is_stored_as_the_bytes_it_is(
    tmp_path: Path, asynchronous: bool
) -> None:
    bucket: Any = Bucket(basepath=str(tmp_path / "bucket"))
    bucket.save("inline", overwrite=True, _sync=True)
    fields = {"result_storage": bucket, "result_serializer": "zfast/inline", "persist_result": True}
    frame = pd.DataFrame({"a": np.arange(100_000), "b": "text"})

    async def make_async() -> pd.DataFrame:
        return frame

    made: Any = flow(name="inline", **fields)(make_async if asynchronous else lambda: frame)
    returned = made(return_state=True)
    state: Any = asyncio.run(returned) if asynchronous else returned
    (file,) = (tmp_path / "bucket").iterdir()
    stored = file.read_bytes()
    assert stored.startswith(MAGIC)
    with get_client(sync_client=True) as client:
        seen = client.read_flow_run(state.state_details.flow_run_id).state
    assert seen is not None
    result: Any = asyncio.run(seen.aresult())
    pd.testing.assert_frame_equal(result, frame)
    result.iloc[0, 0] = 5
    file.write_bytes(stored[:-1])
    with pytest.raises(ObjectCorruptError):
        Serializer(type="zfast").loads(file.read_bytes())


def test_what_shrinks_is_compressed(tmp_path: Path) -> None:
    store = ResultStore(
        result_storage=LocalFileSystem(basepath=str(tmp_path)),
        serializer=Serializer(type="zfast/inline"),
        cache_result_in_memory=False,
    )
    for array in (np.zeros(1_000_000), np.random.default_rng(1).random(1_000_000)):
        store.write(array, key="k")
        read = store.read("k").result
        np.testing.assert_array_equal(read, array)
        read[0] = 5.0  # it is the reader's own
        shrank = (tmp_path / "k").stat().st_size < array.nbytes / 10
        assert shrank == (not array.any())


def test_inline_bytes_are_checked_when_they_are_read() -> None:
    serializer: Any = Serializer(type="zfast/inline")
    blob = serializer.dumps(np.arange(100_000))
    for damaged in (
        blob[:-4],
        blob[:40],
        blob[:-1],
        blob[:500] + b"A" + blob[501:],
        blob + b"AAAA",
    ):
        with pytest.raises((ObjectCorruptError, CodecError)):
            serializer.loads(damaged)


# --- settings, in programs that never mention zfast ---------------------------------------------

PROGRAM = """
import asyncio, sys
import numpy as np
from prefect import flow, task
from prefect.cache_policies import INPUTS

@task(cache_policy=INPUTS, persist_result=True)
def make(n):
    return np.arange(n)

@task(cache_policy=INPUTS, persist_result=True)
async def make_async(n):
    return np.arange(n)

@flow(persist_result=True)
def run():
    state = make(1000, return_state=True)
    print(state.name, type(state.data.metadata.serializer).__name__)
    print(asyncio.run(make_async(2000)).sum())
    return state.result()

state = run(return_state=True)
print(state.state_details.flow_run_id)
"""
READER = """
import sys
from uuid import UUID
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(client.read_flow_run(UUID({flow_run!r})).state.result().sum())
"""


def run_twice_and_read(block: ZfastStorage, run_python: Callable[[str], str]) -> None:
    for expected in ("Completed", "Cached"):
        lines = run_python(PROGRAM).split()
        assert lines[:3] == [expected, "ZfastSerializer", "1999000"]
    written = keys(block)
    assert len(written) == 4  # two tasks, and each run of the flow
    assert all(FolderStore(block.basepath).get(key).has_payload for key in written)
    assert run_python(READER.format(flow_run=lines[3])).strip() == "499500"


@pytest.fixture
def saved(block: ZfastStorage, prefect_api: str) -> str:
    block.save("for-settings", overwrite=True)
    return "zfast-storage/for-settings"


def test_settings_in_the_environment(
    block: ZfastStorage,
    saved: str,
    run_python: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK", saved)
    monkeypatch.setenv("PREFECT_RESULTS_DEFAULT_SERIALIZER", "zfast")
    monkeypatch.setenv("PREFECT_PLUGINS_ENABLED", "true")
    run_twice_and_read(block, run_python)


@pytest.mark.long
def test_settings_in_a_profile(
    block: ZfastStorage,
    saved: str,
    run_python: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(f"""
active = "fast"
[profiles.fast]
PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK = "{saved}"
PREFECT_RESULTS_DEFAULT_SERIALIZER = "zfast"
PREFECT_PLUGINS_ENABLED = "true"
""")
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    monkeypatch.setenv("PREFECT_PROFILE", "fast")
    run_twice_and_read(block, run_python)


def test_without_the_plugin_one_import_does(
    block: ZfastStorage,
    saved: str,
    run_python: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK", saved)
    monkeypatch.setenv("PREFECT_RESULTS_DEFAULT_SERIALIZER", "zfast")
    assert "Completed" in run_python("from zfast import ZfastStorage\n" + PROGRAM)
    with pytest.raises(AssertionError, match="No class found for dispatch key 'zfast'"):
        run_python(PROGRAM)


def test_a_result_without_any_setting_stays_prefects_own(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "stock"}):

        @task(cache_policy=INPUTS, persist_result=True)
        def make(x: int) -> int:
            return x

        state: Any = make(1, return_state=True)
    assert state.data.metadata.serializer.type == "pickle"
