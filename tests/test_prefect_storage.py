from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import polars as pl
import prefect
import pytest
from prefect import flow, task
from prefect.blocks.core import Block
from prefect.cache_policies import INPUTS
from prefect.exceptions import ObjectAlreadyExists
from prefect.filesystems import LocalFileSystem, NullFileSystem
from prefect.results import ResultRecord, ResultStore
from prefect.serializers import CompressedSerializer, PickleSerializer, Serializer
from prefect.states import State
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.transactions import atransaction, transaction

import zfast
from zfast import arena
from zfast.codec import address_of
from zfast.errors import (
    CodecError,
    ConfigError,
    KeyNotFoundError,
    ObjectCorruptError,
    StoreError,
    TicketError,
)
from zfast.prefect import ZfastInlineSerializer, ZfastSerializer, ZfastStorage, storage, tickets
from zfast.store import FolderStore, files
from zfast.store.format import MAGIC

LARGE = 100_000


@pytest.fixture
def block(tmp_path: Path) -> ZfastStorage:
    return ZfastStorage(basepath=str(tmp_path / "results"))


@pytest.fixture(autouse=True)
def nothing_stays_staged() -> Any:
    yield
    assert tickets._staged == {}


def store_of(result_storage: Any, serializer: str = "zfast", **fields: Any) -> ResultStore:
    fields.setdefault("cache_result_in_memory", False)
    return ResultStore(
        result_storage=result_storage, serializer=Serializer(type=serializer), **fields
    )


def frame(rows: int = LARGE) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(rows, dtype=float), "b": np.arange(rows)})


def objects(block: ZfastStorage) -> list[str]:
    return list(FolderStore(block.basepath).list())


def holds_payload(block: ZfastStorage, key: str) -> bool:
    stored = FolderStore(block.basepath).get(key)
    stored.verify()
    return stored.payload is not None


# --- staging: what a result looks like on disk -----------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "asynchronous"),
    # Prefect writes to a NullFileSystem asynchronously only: for flows.
    [("none", False), ("none", True), ("folder", False), ("folder", True), ("null", True)],
)
def test_prefect_lets_us_stage(
    block: ZfastStorage, tmp_path: Path, metadata: str, asynchronous: bool
) -> None:
    """Fails when Prefect no longer calls the serializer the way `internals` knows.

    Results are right even then, only slow: the payload travels inline.
    """
    metadata_storage = {
        "none": None,
        "null": NullFileSystem(),
        "folder": LocalFileSystem(basepath=str(tmp_path / "metadata")),
    }[metadata]
    store = store_of(block, metadata_storage=metadata_storage)
    if asynchronous:
        asyncio.run(store.awrite(frame(), key="k"))
    else:
        store.write(frame(), key="k")
    assert holds_payload(block, "k"), "the payload went inline: see zfast.prefect.internals"
    assert len(bytes(FolderStore(block.basepath).get("k").content)) < 1000
    if metadata != "null":
        assert store.exists("k")
        result = asyncio.run(store.aread("k")) if asynchronous else store.read("k")
        pd.testing.assert_frame_equal(result.result, frame())


def test_without_knowing_prefect_results_go_inline(
    block: ZfastStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect, "__version__", "4.0.0")
    store = store_of(block)
    store.write(frame(), key="k")
    assert not holds_payload(block, "k")
    pd.testing.assert_frame_equal(store.read("k").result, frame())


@pytest.mark.parametrize("serializer", ["zfast", "zfast/inline"])
def test_other_storage_blocks_get_inline_bytes(tmp_path: Path, serializer: str) -> None:
    for metadata_storage in (None, LocalFileSystem(basepath=str(tmp_path / "metadata"))):
        store = store_of(
            LocalFileSystem(basepath=str(tmp_path)), serializer, metadata_storage=metadata_storage
        )
        store.write(frame(), key="k")
        stored = (tmp_path / "k").read_bytes()
        assert stored.startswith(MAGIC) or base64.b64encode(MAGIC[:6]) in stored
        result = store.read("k").result
        pd.testing.assert_frame_equal(result, frame())
        result.iloc[0, 0] = 5.0


def test_a_serializer_around_ours_gets_inline_bytes(block: ZfastStorage) -> None:
    store = store_of(block)
    store.serializer = CompressedSerializer(serializer=ZfastSerializer())
    store.write({"x": 1}, key="k")
    assert not holds_payload(block, "k")
    assert store.read("k").result == {"x": 1}


def test_serializers_by_themselves() -> None:
    for serializer in (ZfastSerializer(), ZfastInlineSerializer()):
        blob = serializer.dumps(frame())
        assert blob.isascii()
        for reader in (ZfastSerializer(), ZfastInlineSerializer()):
            pd.testing.assert_frame_equal(reader.loads(blob), frame())


def frames_of_all_kinds() -> dict[str, Any]:
    index = pd.MultiIndex.from_product([range(300), list("abcdefghij")], names=["i", "j"])
    texts = pd.array(["é", None, "long enough"] * LARGE, dtype="string[pyarrow]")
    mixed = [{"a": 1}, [1, 2], None, "text"]
    names = pl.Series(["a", "b"] * 20_000, dtype=pl.Categorical)
    return {
        "no rows": pd.DataFrame({"x": np.array([], float), "s": pd.Series([], dtype="str")}),
        "no columns": pd.DataFrame(index=range(5)),
        "objects": pd.DataFrame({"o": mixed * 5_000}),
        "categories": pd.DataFrame(
            {"c": pd.Categorical(["a", "b", None] * 9_000, ["b", "a", "z"])}
        ),
        "multi-index": pd.DataFrame({"x": np.arange(len(index))}, index=index),
        "Arrow, a slice": pd.DataFrame({"s": texts})[7 : LARGE + 1],
        "nullable": pd.DataFrame({"i": pd.array([1, None, 3] * 10_000, dtype="Int64")}),
        "polars": pl.DataFrame({"c": names, "l": [[1], None] * 20_000}),
        "polars, no rows": pl.DataFrame(schema={"x": pl.Int64}),
    }


@pytest.mark.parametrize("serializer", ["zfast", "zfast/inline"])
def test_frames_of_all_kinds(block: ZfastStorage, serializer: str) -> None:
    store = store_of(block, serializer)
    for kind, value in frames_of_all_kinds().items():
        store.write(value, key=kind)
        assert store.exists(kind)
        back = store.read(kind).result
        if isinstance(value, pl.DataFrame):
            assert value.equals(back), kind
        else:
            pd.testing.assert_frame_equal(back, value, obj=kind)


@pytest.mark.parametrize("serializer", ["json", "pickle", "compressed/pickle", "zfast/inline"])
def test_the_block_stores_for_any_serializer(block: ZfastStorage, serializer: str) -> None:
    store = store_of(block, serializer)
    store.write(["text", list(range(LARGE))], key="k")
    assert not holds_payload(block, "k")
    assert store.read("k").result == ["text", list(range(LARGE))]


def test_it_is_the_block_of_key_storage(block: ZfastStorage, tmp_path: Path) -> None:
    keys = ZfastStorage(basepath=str(tmp_path / "keys"))
    store = store_of(block, metadata_storage=keys)
    store.write(frame(), key="k")
    assert store.exists("k")
    assert not holds_payload(keys, "k")
    pd.testing.assert_frame_equal(store.read("k").result, frame())


# --- values --------------------------------------------------------------------------------


def test_arrays_are_writable_and_private(block: ZfastStorage) -> None:
    store = store_of(block)
    for size in (10, LARGE):
        store.write(np.zeros(size), key="k")
        array = store.read("k").result
        array[:] = 1.0
        assert store.read("k").result.sum() == 0


def test_a_value_from_the_store_is_stored_again(block: ZfastStorage) -> None:
    store = store_of(block)
    store.write(frame(), key="k")
    for _ in range(3):
        store.write(store.read("k").result, key="k")
    store.write(store.read("k").result, key="other")
    pd.testing.assert_frame_equal(store.read("other").result, frame())


def test_a_kept_value_outlives_its_object(block: ZfastStorage) -> None:
    store = store_of(block)
    store.write(np.ones(LARGE), key="k")
    array = store.read("k").result
    store.write(np.zeros(LARGE), key="k")
    FolderStore(block.basepath).delete("k")
    assert array.sum() == LARGE
    assert not store.exists("k")
    with pytest.raises(KeyNotFoundError):
        store.read("k")


def test_content_copied_to_another_storage_takes_its_payload_along(
    block: ZfastStorage, tmp_path: Path
) -> None:
    other = ZfastStorage(basepath=str(tmp_path / "other"))
    store_of(block).write(frame(), key="k")
    other.write_path("k", block.read_path("k"))
    FolderStore(block.basepath).delete("k")
    pd.testing.assert_frame_equal(store_of(other).read("k").result, frame())


@pytest.mark.skipif(sys.platform != "linux", reason="the arena is Linux's")
def test_a_result_born_in_shared_memory_is_written_from_there(
    block: ZfastStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zfast.share_memory():
        made = frame()
    columns = [made[name].to_numpy().__array_interface__["data"][0] for name in made]
    written: list[int] = []
    writev = os.writev

    def note(fd: int, parts: list[memoryview]) -> int:
        written.extend(map(address_of, parts))
        return writev(fd, parts)

    monkeypatch.setattr(os, "writev", note)
    store_of(block).write(made, key="k")
    assert all(arena.owns(address) and address in written for address in columns)


def test_memory_is_let_go_after_the_write(block: ZfastStorage) -> None:
    array = np.zeros(LARGE)
    gone = weakref.ref(array)
    store_of(block).write(array, key="k")
    del array
    gc.collect()
    assert gone() is None


def test_what_no_storage_takes_is_dropped(
    block: ZfastStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(block)
    with monkeypatch.context() as patch:
        patch.setattr(ZfastStorage, "write_path", lambda *_, **__: None)
        store.write(np.zeros(LARGE), key="lost")
    assert len(tickets._staged) == 1
    monkeypatch.setattr(tickets, "STAGED_MAX_AGE_S", -1.0)
    store.write(1, key="k")


# --- tickets and errors ------------------------------------------------------------------------


def test_a_dead_ticket_says_so(block: ZfastStorage) -> None:
    bare = b"zf1:" + b"0" * 32
    with pytest.raises(TicketError, match=r"never stored.*zfast/inline"):
        ZfastSerializer().loads(bare)
    for content in (bare, json.dumps({"metadata": {}, "result": bare.decode()}).encode()):
        with pytest.raises(TicketError, match=r"cannot write k: .* run the task again"):
            block.write_path("k", content)
    assert objects(block) == []


def test_a_ticket_is_taken_once(block: ZfastStorage) -> None:
    store_of(block).write(1, key="k")
    content = bytes(FolderStore(block.basepath).get("k").content)
    with pytest.raises(TicketError):
        block.write_path("again", content)


@pytest.mark.skipif(not os.path.exists("/proc/thread-self/io"), reason="looks into /proc")
def test_what_is_not_mapped_is_read_once_and_not_to_see_whether_it_is_there(
    block: ZfastStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_read() -> int:
        return int(Path("/proc/thread-self/io").read_text().split()[1])

    nbytes = 10_000_000
    store = store_of(block)
    store.write(np.zeros(nbytes, np.uint8), key="k")
    monkeypatch.setattr(files, "is_shared_between_hosts", lambda _: True)
    assert store.exists("k")  # it may import something
    before = n_read()
    assert store.exists("k")
    seen = n_read()
    assert seen - before < nbytes / 10
    assert store.read("k").result.nbytes == nbytes
    assert n_read() - seen < 1.5 * nbytes


def test_a_located_ticket_after_changes(block: ZfastStorage) -> None:
    store = store_of(block)
    store.write(1, key="k")
    content = block.read_path("k")
    store.write(2, key="k")
    assert ResultRecord[Any].deserialize(content).result == 2
    block.write_path("k", b"something else")
    with pytest.raises(TicketError, match="overwritten"):
        ResultRecord[Any].deserialize(content)
    FolderStore(block.basepath).delete("k")
    with pytest.raises(KeyNotFoundError):
        ResultRecord[Any].deserialize(content)


def test_odd_paths_are_located(tmp_path: Path) -> None:
    block = ZfastStorage(basepath=str(tmp_path / 'ü "%41" @ \\ \n'))
    store = store_of(block)
    store.write([1], key='a b/@"%20é')
    assert store.read('a b/@"%20é').result == [1]


def test_bytes_of_others_are_refused() -> None:
    for blob in (b"", b"hello", PickleSerializer().dumps(1)):
        with pytest.raises(CodecError, match="not a result that zfast wrote"):
            ZfastSerializer().loads(blob)
    inline = bytearray(ZfastInlineSerializer().dumps(frame()))
    inline[-100] ^= 1
    for damaged in (bytes(inline), bytes(inline[:-5]), bytes(inline[:50]), bytes(inline[:8])):
        with pytest.raises(ObjectCorruptError):
            ZfastSerializer().loads(damaged)


def test_text_that_mentions_a_ticket_is_just_text(block: ZfastStorage) -> None:
    text = "zf1:" + "0" * 32
    for serializer in ("json", "zfast", "zfast/inline", "pickle"):
        store = store_of(block, serializer)
        store.write([text], key="k")
        assert store.read("k").result == [text]
    block.write_path("raw", f'{{"text": "{text}"}}'.encode())
    block.write_path("raw", f'{{"broken": "{text}"'.encode())


def test_keys_stay_inside(block: ZfastStorage) -> None:
    with pytest.raises(ConfigError):
        block.write_path("../out", b"")
    with pytest.raises(ConfigError):
        block.read_path("/etc/passwd")


def test_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ZfastStorage().basepath == os.path.realpath(
        os.path.join(os.environ["PREFECT_HOME"], "zfast-results")
    )
    monkeypatch.setenv("ZFAST_STORAGE_PATH", str(tmp_path))
    assert ZfastStorage().basepath == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ZfastStorage(basepath="~/x").basepath == f"{tmp_path}/x"
    monkeypatch.chdir(tmp_path)
    assert ZfastStorage(basepath="y").basepath == f"{tmp_path}/y"
    with pytest.raises(ValueError, match="no field basepth"):
        ZfastStorage(basepth="x")
    with pytest.raises(ValueError, match="durability"):
        ZfastStorage(durability="none")


# --- transactions ------------------------------------------------------------------------------


def test_a_rolled_back_transaction_leaves_nothing(block: ZfastStorage) -> None:
    def run() -> None:
        with transaction(key="k", store=store_of(block)) as txn:
            txn.stage(frame())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run()
    assert objects(block) == []


def test_nested_transactions_with_different_storages(block: ZfastStorage, tmp_path: Path) -> None:
    local = LocalFileSystem(basepath=str(tmp_path / "local"))
    for outer, inner in ((store_of(block), store_of(local)), (store_of(local), store_of(block))):
        with transaction(key="outer", store=outer) as outer_txn:
            with transaction(key="inner", store=inner) as inner_txn:
                inner_txn.stage(frame())
            outer_txn.stage(frame())
        pd.testing.assert_frame_equal(outer.read("outer").result, frame())
        pd.testing.assert_frame_equal(inner.read("inner").result, frame())
    assert holds_payload(block, "outer")
    assert holds_payload(block, "inner")


def test_nested_asynchronous_transactions(block: ZfastStorage, tmp_path: Path) -> None:
    local = LocalFileSystem(basepath=str(tmp_path / "local"))

    async def run() -> None:
        async with atransaction(key="outer", store=store_of(local)) as outer_txn:
            async with atransaction(key="inner", store=store_of(block)) as inner_txn:
                inner_txn.stage(frame())
            outer_txn.stage(frame())

    asyncio.run(run())
    assert holds_payload(block, "inner")
    pd.testing.assert_frame_equal(store_of(local).read("outer").result, frame())


# --- blocks, saved or not ------------------------------------------------------------------------


def test_decorating_asks_no_api(block: ZfastStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when Prefect's check for unsaved blocks changes: see `ZfastStorage.__bool__`."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the API was asked")

    monkeypatch.setattr(storage, "get_client", refuse)
    decorated_task = task(result_storage=block, result_serializer="zfast")(frame)
    decorated_flow = flow(result_storage=block, result_serializer="zfast")(frame)
    for decorated in (decorated_task, decorated_flow, decorated_task.with_options(name="x")):
        assert decorated.result_storage is block
    assert decorated_flow.with_options(name="x").result_storage is block


def test_by_hand_an_unsaved_block_is_found_by_its_path(block: ZfastStorage) -> None:
    store = store_of(block)
    record = store.create_result_record(frame(), key="k")
    assert record.metadata.storage_block_id is None
    assert record.metadata.storage_key == f"{block.basepath}/k"
    store.persist_result_record(record)
    assert store.exists("k")
    # Prefect reads it with a LocalFileSystem and hands the serializer the whole file.
    found = asyncio.run(ResultStore._from_metadata(record.metadata))
    pd.testing.assert_frame_equal(found.result, frame())


def test_save_load_copy_and_pickle(prefect_api: str, block: ZfastStorage) -> None:
    assert not block
    block.save("mine", overwrite=True)
    loaded: Any = Block.load("zfast-storage/mine")
    assert loaded == ZfastStorage.load("mine")
    assert type(loaded) is ZfastStorage
    assert loaded.basepath == block.basepath
    assert loaded
    for twin in (block.model_copy(), cloudpickle.loads(cloudpickle.dumps(block))):
        assert twin._block_document_id == block._block_document_id == loaded._block_document_id
    block.save("mine", overwrite=True)

    @task(result_storage="zfast-storage/mine", result_serializer="zfast", persist_result=True)
    def make() -> pd.DataFrame:
        return frame()

    record: Any = make(return_state=True).data
    assert record.metadata.storage_block_id == block._block_document_id
    assert holds_payload(block, record.metadata.storage_key)


def test_one_document_for_equal_blocks(
    prefect_api: str, block: ZfastStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_saved_ids", {})
    blocks = [block, *(ZfastStorage(basepath=block.basepath) for _ in range(7))]

    @task(persist_result=True)
    def save(index: int) -> None:
        assert blocks[index]._resolve_path("k") is None

    save_all = flow(lambda: [future.result() for future in save.map(range(8))], name="save")
    save_all()
    assert len({each._block_document_id for each in blocks}) == 1
    monkeypatch.setattr(storage, "_saved_ids", {})
    later = ZfastStorage(basepath=block.basepath)
    flow(lambda: later._resolve_path("k"), name="later")()
    assert later._block_document_id == block._block_document_id


def test_two_processes_that_register_the_block_at_once(
    prefect_api: str, block: ZfastStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.internals.save
    calls: list[str] = []

    def second_wins(saved: Block, name: str) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise ObjectAlreadyExists(Exception("somebody else was first"))
        return real(saved, name)

    monkeypatch.setattr(storage.internals, "save", second_wins)
    flow(lambda: block._resolve_path("k"), name="race")()
    assert block
    assert len(calls) == 2


def test_without_the_api_results_are_stored_all_the_same(
    prefect_api: str,
    block: ZfastStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no API")

    monkeypatch.setattr(storage, "_next_save", 0.0)
    monkeypatch.setattr(ZfastStorage, "_find_or_save", fail)

    @task(result_storage=block, result_serializer="zfast", persist_result=True)
    def make() -> pd.DataFrame:
        return frame()

    record: Any = make(return_state=True).data
    make()
    assert caplog.text.count("cannot save the storage block") == 1
    found = asyncio.run(ResultStore._from_metadata(record.metadata))
    pd.testing.assert_frame_equal(found.result, frame())
    monkeypatch.setattr(storage, "_next_save", 0.0)


# --- runs ----------------------------------------------------------------------------------------

DEFINITIONS = """
import sys
import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.cache_policies import INPUTS
from zfast.prefect import ZfastStorage
from zfast.prefect import tickets

storage = ZfastStorage(basepath={basepath!r})
calls = []

@task(result_storage=storage, result_serializer="zfast", persist_result=True, cache_policy=INPUTS,
      cache_result_in_memory=False)
def make(rows):
    calls.append(rows)
    return pd.DataFrame({{"a": np.arange(rows, dtype=float)}})

@task(result_storage=storage, result_serializer="zfast", persist_result=True, cache_policy=INPUTS)
async def make_async(rows):
    calls.append(rows)
    return np.arange(rows)

@flow(result_storage=storage, result_serializer="zfast", persist_result=True)
def both(rows):
    return make(rows) * 2

@flow(result_storage=storage, result_serializer="zfast", persist_result=True)
async def both_async(rows):
    return await make_async(rows) * 2
"""

COLD_READER = """
import sys
from uuid import UUID
import numpy as np
from prefect.client.orchestration import get_client
assert "zfast" not in sys.modules
with get_client(sync_client=True) as client:
    runs = [client.read_flow_run(UUID({flow_run!r})), client.read_task_run(UUID({task_run!r}))]
    for run in reversed(runs) if {tasks_first!r} else runs:
        print(float(np.asarray(run.state.result()).sum()))
"""


def test_one_process_writes_another_reads_from_the_cache_a_third_from_the_api(
    block: ZfastStorage, run_python: Callable[[str], str]
) -> None:
    definitions = DEFINITIONS.format(basepath=block.basepath)
    run = (
        definitions
        + """
import asyncio
state = both(1000, return_state=True)
state_async = asyncio.run(both_async(2000, return_state=True))
print(calls, state.result()["a"].sum(), state_async.result().sum())
print(state.state_details.flow_run_id, state_async.state_details.flow_run_id)
task_state = make(1000, return_state=True)
print(task_state.name, task_state.state_details.task_run_id, tickets._staged)
"""
    )
    first = run_python(run).splitlines()
    assert first[0] == "[1000, 2000] 999000.0 3998000"
    written = objects(block)
    assert len(written) == 4  # of two flows and two tasks
    assert all(holds_payload(block, key) for key in written)

    second = run_python(run).splitlines()
    assert second[0] == "[] 999000.0 3998000"
    name, task_run, staged = second[2].split()
    assert (name, staged) == ("Cached", "{}")
    flow_run, _ = first[1].split()

    for tasks_first in (False, True):
        script = COLD_READER.format(flow_run=flow_run, task_run=task_run, tasks_first=tasks_first)
        totals = sorted(map(float, run_python(script).split()))
        assert totals == [499500.0, 999000.0]


def test_a_worker_process_stores_and_the_driver_reads(
    prefect_api: str, block: ZfastStorage
) -> None:
    @task(result_storage=block, result_serializer="zfast", persist_result=True, cache_policy=INPUTS)
    def make(rows: int) -> np.ndarray[Any, Any]:
        return np.arange(rows)

    @task
    def inherited(rows: int) -> np.ndarray[Any, Any]:
        return np.arange(rows)

    @flow(
        result_storage=block,
        result_serializer="zfast",
        persist_result=True,
        task_runner=ProcessPoolTaskRunner(max_workers=1),
    )
    def run() -> list[State[Any]]:
        futures = [make.submit(1000), inherited.submit(1001)]
        for future in futures:
            future.wait()
        return [future.state for future in futures]

    states: Any = run()
    for rows, state in zip((1000, 1001), states, strict=True):
        metadata = state.data.metadata
        assert metadata.storage_block_id is not None
        assert holds_payload(block, metadata.storage_key)
        found = asyncio.run(ResultStore._from_metadata(metadata))
        assert found.result.shape == (rows,)


def test_a_failed_write_does_not_fail_the_task(
    prefect_api: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    block = ZfastStorage(basepath=str(tmp_path / "file" / "below"))

    @task(result_storage=block, result_serializer="zfast", persist_result=True, cache_policy=INPUTS)
    def make(rows: int) -> pd.DataFrame:
        return frame(rows)

    state: Any = make(1000, return_state=True)
    assert state.is_completed()
    assert len(state.result()) == 1000
    assert "a part of the path is a file" in caplog.text


def test_a_value_that_cannot_be_pickled_does_not_fail_the_task(
    prefect_api: str, block: ZfastStorage, caplog: pytest.LogCaptureFixture
) -> None:
    @task(result_storage=block, result_serializer="zfast", persist_result=True, cache_policy=INPUTS)
    def make(_: int) -> Any:
        return threading.Lock()

    assert make(1, return_state=True).is_completed()
    assert "Failed to serialize" in caplog.text
    assert objects(block) == []


def test_an_exception_is_a_result_too(prefect_api: str, block: ZfastStorage) -> None:
    @flow(result_storage=block, result_serializer="zfast", persist_result=True)
    def fail() -> None:
        raise KeyError("on purpose")

    state: Any = fail(return_state=True)
    found = asyncio.run(ResultStore._from_metadata(state.data.metadata))
    assert isinstance(found.result, KeyError)


def test_errors_are_those_of_a_store() -> None:
    assert issubclass(TicketError, StoreError)
    assert logging.getLogger("zfast.prefect") is storage._log
