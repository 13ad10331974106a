"""Results moved between a store and Prefect's stock format, and read by Prefect on both sides."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer, Serializer

from other_user import closed_to_its_owner
from test_cli import run_zfast
from zfast.errors import ConfigError, StoreError
from zfast.prefect import ZfastStorage
from zfast.prefect.results_transfer import Transfer, export_results, import_results
from zfast.store import FolderStore
from zfast.store.records import read_record

ROWS = 10_000


def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(ROWS, dtype=float), "s": ["text"] * ROWS})


def result_store(storage: Any, serializer: str, **fields: Any) -> ResultStore:
    return ResultStore(
        result_storage=storage,
        serializer=Serializer(type=serializer),
        cache_result_in_memory=False,
        **fields,
    )


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A folder as Prefect's own storage leaves it, of several serializers."""
    folder = tmp_path / "stock"
    for serializer in ("pickle", "json", "compressed/pickle"):
        value: Any = {"n": [1, 2]} if serializer == "json" else frame()
        store = result_store(LocalFileSystem(basepath=str(folder)), serializer)
        store.write(value, key=f"{serializer}/k")
    close_to_others(folder)
    return folder


def close_to_others(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "store"))


def assert_all_moved(done: Transfer, n_converted: int) -> None:
    assert done.failures == []
    assert (done.n_converted, done.n_copied, done.skipped) == (n_converted, 0, [])


def assert_same(result: Any, serializer: str) -> None:
    if serializer == "json":
        assert result == {"n": [1, 2]}
    else:
        pd.testing.assert_frame_equal(result, frame())


SERIALIZERS = ["pickle", "json", "compressed/pickle"]


def test_in_and_out_again(stock: Path, store: FolderStore, tmp_path: Path) -> None:
    assert_all_moved(import_results(stock, store), 3)
    ours = result_store(ZfastStorage(basepath=store.basepath), "zfast")
    for serializer in SERIALIZERS:
        key = f"{serializer}/k"
        assert store.get(key).has_payload
        assert ours.exists(key)
        assert_same(ours.read(key).result, serializer)
    back = tmp_path / "back"
    assert_all_moved(export_results(store, back), 3)
    theirs = result_store(LocalFileSystem(basepath=str(back)), "pickle")
    for serializer in SERIALIZERS:
        record = theirs.read(f"{serializer}/k")
        assert_same(record.result, serializer)
        assert record.metadata.storage_key == str(back / serializer / "k")
        assert record.metadata.serializer == PickleSerializer()
    # Nothing but results is there, and the folders are as they were.
    assert sum(path.is_file() for path in back.rglob("*")) == 3
    stock_store = result_store(LocalFileSystem(basepath=str(stock)), "json")
    assert_same(stock_store.read("json/k").result, "json")


def test_metadata_survive(stock: Path, store: FolderStore) -> None:
    path = stock / "pickle" / "k"
    record = json.loads(path.read_text())
    record["metadata"]["expiration"] = "2001-01-01T00:00:00Z"
    path.write_text(json.dumps(record))
    import_results(stock, store)
    found = read_record(store.get("pickle/k").content)
    assert found is not None
    assert (found.expires_s, found.serializer) == (978_307_200.0, "zfast")
    assert found.storage_key == store.path_of("pickle/k")


def test_results_whose_metadata_are_elsewhere(store: FolderStore, tmp_path: Path) -> None:
    """What `key_storage` leaves: bare results in one folder, metadata in another."""
    results, metadata = tmp_path / "results", tmp_path / "metadata"
    result_store(
        LocalFileSystem(basepath=str(results)),
        "pickle",
        metadata_storage=LocalFileSystem(basepath=str(metadata)),
    ).write(frame(), key="k")
    for folder in (results, metadata):
        close_to_others(folder)
    keys = FolderStore(str(tmp_path / "keys"))
    assert_all_moved(import_results(results, store), 1)
    assert_all_moved(import_results(metadata, keys), 1)
    ours = result_store(
        ZfastStorage(basepath=store.basepath),
        "zfast",
        metadata_storage=ZfastStorage(basepath=keys.basepath),
    )
    assert ours.exists("k")
    assert_same(ours.read("k").result, "pickle")
    assert_all_moved(export_results(store, tmp_path / "results back"), 1)
    assert_all_moved(export_results(keys, tmp_path / "metadata back"), 1)
    theirs = result_store(
        LocalFileSystem(basepath=str(tmp_path / "results back")),
        "pickle",
        metadata_storage=LocalFileSystem(basepath=str(tmp_path / "metadata back")),
    )
    assert_same(theirs.read("k").result, "pickle")


@pytest.mark.parametrize("serializer", ["zfast", "zfast/inline", "pickle"])
def test_out_of_what_prefect_wrote_to_ours(tmp_path: Path, serializer: str) -> None:
    block = ZfastStorage(basepath=str(tmp_path / "ours"))
    result_store(block, serializer).write(frame(), key="k")
    done = export_results(FolderStore(block.basepath), tmp_path / "out")
    assert done.failures == []
    assert done.n_converted == (serializer != "pickle")
    theirs = result_store(LocalFileSystem(basepath=str(tmp_path / "out")), "pickle")
    assert_same(theirs.read("k").result, serializer)


def test_as_is_decodes_nothing(stock: Path, store: FolderStore) -> None:
    stock.chmod(0o777)
    (stock / "a pickle of somebody").write_bytes(b"gASVDQAAAAAAAACMBXBvc2l4lIwEZXhpdA==")
    done = import_results(stock, store, as_is=True)
    assert (done.n_copied, done.n_converted, done.failures) == (4, 0, [])
    ours = result_store(ZfastStorage(basepath=store.basepath), "zfast")
    assert_same(ours.read("pickle/k").result, "pickle")


def test_what_another_may_have_written_is_not_decoded(
    stock: Path, store: FolderStore, tmp_path: Path
) -> None:
    trap = stock / "trap"
    fired = tmp_path / "fired"
    trap.write_bytes(PickleSerializer().dumps(Trap(str(fired))))
    trap.chmod(0o666)
    (stock / "json").chmod(0o775)
    done = import_results(stock, store)
    assert {key for key, _ in done.failures} == {"trap", "json/k"}
    assert all(isinstance(error, StoreError) for _, error in done.failures)
    assert "--trust-pickles" in str(done.failures[0][1])
    assert not fired.exists()
    assert set(store.list()) == {"pickle/k", "compressed/pickle/k"}
    if os.geteuid() == 0:
        shutil.chown(stock / "pickle" / "k", 65534)
        assert import_results(stock, store, overwrite=True).n_converted == 1
    done = import_results(stock, store, trust=True, overwrite=True)
    assert (done.failures, done.n_converted) == ([], 4)
    assert fired.exists()
    Path(store.path_of("pickle/k")).chmod(0o666)
    done = export_results(store, tmp_path / "out")
    assert [key for key, _ in done.failures] == ["pickle/k"]


class Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_what_cannot_be_moved_is_named_and_the_rest_moved(
    stock: Path, store: FolderStore, tmp_path: Path
) -> None:
    (stock / "text").write_text("hello")
    (stock / "half").write_bytes((stock / "pickle" / "k").read_bytes()[:-50])
    store.put("object", b"")
    shutil.copy(store.path_of("object"), stock / "object of ours")
    done = import_results(stock, store)
    assert {key for key, _ in done.failures} == {"text", "half", "object of ours"}
    assert done.n_converted == 3
    assert len(import_results(stock, store).skipped) == 3
    data = bytearray(Path(store.path_of("pickle/k")).read_bytes())
    data[-1] ^= 1
    Path(store.path_of("pickle/k")).write_bytes(data)
    done = export_results(store, tmp_path / "out")
    assert [key for key, _ in done.failures] == ["pickle/k"]
    assert (done.n_converted, done.n_copied) == (2, 1)
    assert not (tmp_path / "out" / "pickle" / "k").exists()
    assert len(export_results(store, tmp_path / "out").skipped) == 3


def test_wrong_folders(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        import_results(tmp_path / "missing", store)
    store.put("k", b"")
    with pytest.raises(ConfigError, match="the store itself"):
        import_results(Path(store.basepath), store)
    for target in (Path(store.basepath), Path(store.basepath) / "below"):
        with pytest.raises(ConfigError, match="in the store itself"):
            export_results(store, target)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(short_folder: Path) -> None:
    store, other = FolderStore(f"{short_folder}/store"), FolderStore(f"{short_folder}/other")
    for key in ("a/b", "plain"):
        store.put(key, b"anything")
    stock = short_folder / "stock"
    moves = (
        (Path(store.basepath), lambda: export_results(store, stock, overwrite=True)),
        (stock, lambda: import_results(stock, other, as_is=True, overwrite=True)),
    )
    for source, move in moves:
        assert move().n_copied == 2
        with closed_to_its_owner(source / "a", short_folder):
            done = move()
        assert [key for key, _ in done.failures] == ["a"]
        assert done.n_copied == 1
        with (
            closed_to_its_owner(source, short_folder),
            pytest.raises(StoreError, match="Permission denied"),
        ):
            move()


def test_by_the_command_line(stock: Path, store: FolderStore, tmp_path: Path) -> None:
    (stock / "text").write_text("hello")
    (stock / "text").chmod(0o600)
    to = ["--basepath", store.basepath, "--json"]
    done = run_zfast("store", "import", str(stock), *to)
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["n_converted"] == 3
    assert [each["key"] for each in report["failed"]] == ["text"]
    done = run_zfast("store", "export", str(tmp_path / "out"), *to)
    assert (done.returncode, json.loads(done.stdout)["n_converted"]) == (0, 3)
    hide = (
        "import importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name, *rest: None if name == 'prefect' else find(name, *rest)"
    )
    done = run_zfast("store", "export", str(tmp_path / "out"), *to, before=hide)
    assert (done.returncode, "pip install 'zfast[prefect]'" in done.stderr) == (1, True)
