from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from zfast.codec import Payload
from zfast.errors import ConfigError, KeyNotFoundError, ObjectCorruptError, StoreError
from zfast.store import FolderStore, ObjectStore, files, folder

LARGE = files.MAP_MIN_NBYTES * 2
TOKEN = bytes(range(16))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "store"))


def payload(fill: int = 1, nbytes: int = LARGE) -> Payload:
    return Payload(b"header", [memoryview(bytearray([fill]) * nbytes)])


def temporary_files(store: FolderStore) -> list[str]:
    below = Path(store.basepath) / folder.TEMPORARY_FOLDER
    return [path.name for path in below.glob("*") if not path.is_dir()]


def first_byte(store: FolderStore, key: str) -> int:
    stored = store.get(key)
    assert stored.payload is not None
    return stored.payload.buffers[0][0]


def test_is_a_store() -> None:
    store: ObjectStore = FolderStore("anywhere")
    assert not store.exists("x")
    assert list(store.list()) == []


@pytest.mark.parametrize("nbytes", [0, 1, 1000, LARGE])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_put_and_get(tmp_path: Path, nbytes: int, durability: folder.Durability) -> None:
    store = FolderStore(str(tmp_path / "store"), durability=durability)
    store.put("a/key", b"content", payload(7, nbytes), TOKEN)
    stored = store.get("a/key")
    stored.verify()
    assert stored.content == b"content"
    assert stored.token == TOKEN
    assert stored.payload is not None
    assert stored.payload.header == b"header"
    assert bytes(stored.payload.buffers[0]) == b"\7" * nbytes
    assert store.exists("a/key")
    assert temporary_files(store) == []


def test_large_content_alone(store: FolderStore) -> None:
    content = os.urandom(LARGE)
    store.put("k", content)
    assert store.get("k").content == content
    assert store.get("k").payload is None


def test_short_writes_and_many_buffers(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    sizes: list[int] = []

    def some(fd: int, parts: list[memoryview]) -> int:
        assert len(parts) <= files._IOV_MAX
        sizes.append(real(fd, [b"".join(parts)[:10_007]]))
        return sizes[-1]

    monkeypatch.setattr(os, "writev", some)
    parts = [os.urandom(index % 70) for index in range(5000)]
    store.put("k", b"content", Payload(b"h", [memoryview(part) for part in parts]))
    stored = store.get("k")
    stored.verify()
    assert len(sizes) > 10
    assert stored.payload is not None
    assert [bytes(buffer) for buffer in stored.payload.buffers] == parts


def test_modes(store: FolderStore) -> None:
    store.put("a/b/k", b"")
    base = Path(store.basepath)
    assert stat.S_IMODE((base / "a/b/k").stat().st_mode) == 0o600
    for path in (base, base / "a", base / "a/b", base / folder.TEMPORARY_FOLDER):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_list_and_delete(store: FolderStore) -> None:
    for key in ("b", "a/x", "a/y"):
        store.put(key, b"")
    assert sorted(store.list()) == ["a/x", "a/y", "b"]
    store.delete("a/x")
    assert sorted(store.list()) == ["a/y", "b"]
    assert not store.exists("a/x")
    with pytest.raises(KeyNotFoundError):
        store.delete("a/x")


def test_what_a_file_system_has_at_its_root_is_no_object(store: FolderStore) -> None:
    for folder_of in ("lost+found", "a/lost+found"):
        Path(store.basepath, folder_of).mkdir(parents=True)
        Path(store.basepath, folder_of, "x").touch()
    assert list(store.list()) == ["a/lost+found/x"]


def test_a_missing_key(store: FolderStore) -> None:
    store.put("a/file", b"")
    for key in ("x", "a", "a/file/below"):
        assert not store.exists(key)
        with pytest.raises(KeyNotFoundError, match="no object") as caught:
            store.get(key)
        assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize(
    "key",
    [
        *("", ".", "/", "..", "a/../b", "../x", "/etc/passwd", "//x", "a\0b"),
        *("x" * 256, "é" * 128, ".zfast/x", "\udfff\ud800"),
    ],
)
def test_keys_that_are_refused(store: FolderStore, key: str) -> None:
    for call in (store.get, store.delete, store.exists, store.path_of):
        with pytest.raises(ConfigError):
            call(key)
    with pytest.raises(ConfigError):
        store.put(key, b"")
    assert not os.path.exists(store.basepath)


@pytest.mark.parametrize("key", ["k", "a//b", "./a", "~", "ü ñ", "x" * 255, "a.b", "a/.zfast"])
def test_odd_keys_that_are_fine(store: FolderStore, key: str) -> None:
    store.put(key, b"c")
    assert store.get(key).content == b"c"
    absolute = store.path_of(key)
    assert absolute.startswith(store.basepath + "/")
    assert store.get(absolute).content == b"c"


def test_a_neighbour_with_the_same_beginning_is_outside(store: FolderStore) -> None:
    with pytest.raises(ConfigError, match="outside"):
        store.path_of(store.basepath + "-other/k")


def test_read_arrays_are_private_and_writable(store: FolderStore) -> None:
    for nbytes in (1000, LARGE):
        store.put("k", b"", payload(1, nbytes))
        stored = store.get("k")
        assert stored.payload is not None
        array = np.frombuffer(stored.payload.buffers[0], np.uint8)
        array[:] = 2
        assert first_byte(store, "k") == 1
        store.get("k").verify()


def test_an_open_object_outlives_overwriting_and_deletion(store: FolderStore) -> None:
    store.put("k", b"old", payload(1))
    old = store.get("k")
    store.put("k", b"new", payload(2))
    new = store.get("k")
    store.delete("k")
    for stored, content, fill in ((old, b"old", 1), (new, b"new", 2)):
        stored.verify()
        assert stored.content == content
        assert stored.payload is not None
        assert bytes(stored.payload.buffers[0]) == bytes([fill]) * LARGE


def test_concurrent_overwriting_is_never_seen_half(store: FolderStore) -> None:
    store.put("k", b"", payload(0))
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(fill: int) -> None:
        while not stop.is_set():
            store.put("k", b"", payload(fill))

    def read() -> None:
        try:
            for _ in range(200):
                store.get("k").verify()
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(fill,)) for fill in (1, 2)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert errors == []
    assert temporary_files(store) == []


def test_mappings_end_with_their_views(store: FolderStore) -> None:
    store.put("k", b"", payload())
    path = store.path_of("k")

    def mapped() -> bool:
        return path in Path("/proc/self/maps").read_text()

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    stored = store.get("k")
    assert stored.payload is not None
    view = stored.payload.buffers[0]
    del stored
    assert mapped()
    del view
    gc.collect()
    assert not mapped()


def test_descriptors_are_not_used_up(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_MAPPED", 3)
    store.put("k", b"", payload(1, 3 * LARGE))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    kept = [store.get("k") for _ in range(20)]
    for stored in kept:
        stored.verify()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_damaged_files(store: FolderStore) -> None:
    store.put("k", b"content", payload())
    path = Path(store.path_of("k"))
    data = path.read_bytes()
    for damaged in (b"", data[:10], data[:-1], data + b"\0", b"foreign" * 50):
        path.write_bytes(damaged)
        with pytest.raises(ObjectCorruptError, match=str(path)):
            store.get("k")


def test_basepath_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = FolderStore(str(tmp_path / "file" / "store"))
    with pytest.raises(StoreError, match=r"file/store/k.*not a folder") as caught:
        store.put("k", b"")
    assert caught.value.errno == errno.ENOTDIR
    assert not store.exists("k")


def test_a_key_that_is_a_folder_of_others(store: FolderStore) -> None:
    store.put("a/b", b"")
    with pytest.raises(StoreError, match="it names a folder") as caught:
        store.put("a", b"")
    assert caught.value.errno in (errno.EISDIR, errno.ENOTEMPTY)
    assert temporary_files(store) == []


def test_no_right_to_write(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root every folder is writable, so the system's answer is put on.
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    store.put("k", b"old")
    monkeypatch.setattr(os, "open", refuse)
    for call in (lambda: store.put("k", b""), lambda: store.get("k")):
        with pytest.raises(StoreError, match="readable and writable by this user") as caught:
            call()
        assert caught.value.errno == errno.EACCES
        assert not isinstance(caught.value, KeyNotFoundError)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_object_and_nothing_else(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    store.put("k", b"old")

    def fail(fd: int, parts: list[memoryview]) -> int:
        os.write(fd, parts[0])
        raise error

    monkeypatch.setattr(os, "writev", fail)
    with pytest.raises((StoreError, KeyboardInterrupt)):
        store.put("k", b"new", payload())
    assert temporary_files(store) == []
    assert store.get("k").content == b"old"


def test_file_size_limit(tmp_path: Path) -> None:
    script = f"""
import os, resource
from zfast.errors import StoreError
from zfast.store import FolderStore
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = FolderStore({str(tmp_path)!r})
try:
    store.put("k", bytes(1_000_000))
except StoreError as error:
    left = [name for name in os.listdir(store.basepath + "/.zfast") if name != "leases"]
    print(error.errno, left, store.exists("k"), error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{errno.EFBIG} [] False")
    assert "ulimit -f" in done.stdout


def test_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        store = FolderStore(str(tmp_path / "store"))
        store.put("k", b"old")
        with pytest.raises(StoreError, match="free some space") as caught:
            store.put("k", b"new", payload(1, 2_000_000))
        assert caught.value.errno == errno.ENOSPC
        assert store.path_of("k") in str(caught.value)
        assert temporary_files(store) == []
        assert store.get("k").content == b"old"
        store.put("k", b"new", payload(1, 500_000))
        del caught
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_killed_writer_leaves_nothing_after_the_next_write(store: FolderStore) -> None:
    script = f"""
import os, time
from zfast.store import FolderStore
real = os.writev
def half(fd, parts):
    real(fd, parts[:1])
    print("half", flush=True)
    time.sleep(60)
os.writev = half
FolderStore({store.basepath!r}).put("k", bytes(1000))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        FolderStore(store.basepath).put("other", b"")
        assert len(temporary_files(store)) == 1, "a living writer's file was swept"
        writer.send_signal(signal.SIGKILL)
    assert not store.exists("k")
    assert list(store.list()) == ["other"]
    FolderStore(store.basepath).put("other", b"")
    assert temporary_files(store) == []


def test_sweeping_is_repeated(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("k", b"")
    stale = Path(store.basepath) / folder.TEMPORARY_FOLDER / "stale"
    stale.write_bytes(b"")
    store.put("k", b"")
    assert stale.exists()
    monkeypatch.setattr(folder, "SWEEP_INTERVAL_S", 0.0)
    store._next_sweep = 0.0
    store.put("k", b"")
    assert not stale.exists()


def test_without_locks_on_the_file_system(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    store.put("k", b"c")
    assert store.get("k").content == b"c"
    assert temporary_files(store) == []


def test_the_first_writers_of_a_store_make_its_folders_together(tmp_path):
    # Each finds that a folder is missing which another makes just then.
    n_writers, n_rounds = 8, 60
    barrier, errors = threading.Barrier(n_writers), []

    def write(writer):
        for n in range(n_rounds):
            barrier.wait()
            try:
                FolderStore(str(tmp_path / f"s{n}" / "deep")).put(f"a/b/{writer}", b"content")
            except StoreError as error:
                errors.append(error)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(n_writers)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert len(list(tmp_path.glob("s*/deep/a/b/*"))) == n_writers * n_rounds
