"""What can go wrong while a store is used, brought about for real where the system allows it."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store_killed import KEY, KilledProcesses, new_payload
from zfast.codec import Payload
from zfast.errors import ConfigError, KeyNotFoundError, ObjectCorruptError, StoreError
from zfast.store import FolderStore, files, mounts
from zfast.store.folder import Durability
from zfast.store.inspection import describe, verify, verify_all
from zfast.store.retention import collect

OTHER = "a/other"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def killed() -> Iterator[KilledProcesses]:
    with KilledProcesses() as processes:
        yield processes


def old_payload() -> Payload:
    return Payload(b"old header", [memoryview(b"o" * 200_000)])


def state_of(store: FolderStore) -> str:
    """Say which object is there, having looked at every byte."""
    for _, damage in verify_all(store):
        assert damage is None
    if not store.exists(KEY):
        return "none"
    stored = store.get(KEY)
    stored.verify()
    expected = {b"old": old_payload(), b"new": new_payload()}[bytes(stored.content)]
    assert stored.payload is not None
    assert stored.payload.header == expected.header
    assert stored.payload.buffers == expected.buffers
    return bytes(stored.content).decode()


def left_by_the_dead(store: FolderStore) -> set[str]:
    """Every file in the store's own folder that no living process has locked."""
    below = Path(store.basepath) / ".zfast"
    gate = below / "leases" / "gate"
    store.leases.sweep()
    return {str(path) for path in below.rglob("*") if path.is_file() and path != gate}


# --- killed at each step ---------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("action", ["put", "warm put"])
@pytest.mark.parametrize("before", ["none", "old"])
def test_a_writer_killed_before_each_system_call(
    killed: KilledProcesses, tmp_path: Path, durability: Durability, action: str, before: str
) -> None:
    calls: list[str | None] = []
    while not calls or calls[-1]:
        folder = tmp_path / str(len(calls))
        store = FolderStore(str(folder), durability=durability)
        if before == "old":
            store.put(KEY, b"old", old_payload())
            store.put(OTHER, b"other")
        calls.append(killed.run(str(folder), durability, action, len(calls)))
        state = state_of(store)
        if calls[-1] is None:
            assert state == "new"
        elif "rename" in calls:
            # "rename" is the call that it died before, or one that it made.
            assert state == (before if calls[-1] == "rename" else "new")
        else:
            assert state == before

        # The next writer, whoever it is, finds nothing in its way and leaves nothing.
        store.put(KEY, b"new", new_payload())
        FolderStore(str(folder)).sweep()
        assert state_of(store) == "new"
        ours = {path for path in left_by_the_dead(store) if not files.remove_unlocked(path)}
        assert len(ours) == 1, "more is left than the lease of this process"
        shutil.rmtree(folder)
    assert calls.count("writev") >= 3, calls
    assert ("fsync" in calls) == (durability == "power"), calls
    assert len(calls) > 15


@pytest.mark.parametrize("action", ["get", "collect", "delete"])
def test_a_reader_or_collector_killed_before_each_system_call(
    killed: KilledProcesses, tmp_path: Path, action: str
) -> None:
    calls: list[str | None] = []
    while not calls or calls[-1]:
        store = FolderStore(str(tmp_path / str(len(calls))))
        store.put(KEY, b"old", old_payload())
        store.put(OTHER, b"other")
        store.leases.let_go()
        calls.append(killed.run(store.basepath, "process", action, len(calls)))
        gone = action != "get" and ("unlink" in calls[:-1] or calls[-1] is None)
        if not gone:
            assert state_of(store) == "old"
        store.put(KEY, b"old", old_payload())
        assert state_of(store) == "old"
        store.leases.let_go()
        assert collect(store, budget_nbytes=0).n_left == 0
    assert len(calls) > (1 if action == "delete" else 5), calls


# --- space, rights, folders ------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; where none may be mounted, a limit on each file's size."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_in_the_middle_of_a_write(small_disk: Path) -> None:
    store = FolderStore(str(small_disk / "store"))
    store.put("k", b"old", old_payload())
    large = Payload(b"", [memoryview(bytes(500_000)) for _ in range(6)])
    with pytest.raises(StoreError, match=r"cannot write .*/store/k: No space .*zfast store gc"):
        store.put("k", b"new", large)
    verify(store, "k")
    assert store.get("k").content == b"old"
    assert len(left_by_the_dead(store)) == 1, "only the lease"
    store.leases.let_go()
    collect(store, budget_nbytes=0)
    store.put("k", b"new", new_payload())


def test_a_disk_too_full_for_the_lease_still_reads(small_disk: Path) -> None:
    store = FolderStore(str(small_disk / "store"))
    store.put("k", b"old", old_payload())
    with open(small_disk / "filler", "wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    script = f"""
from zfast.store import FolderStore
print(FolderStore({store.basepath!r}).get("k").content.tobytes())
"""
    assert run_python(script) == "b'old'\n"


def run_python(script: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_of_somebody_else(short_folder: Path) -> None:
    # Pytest's own folders are closed to others.
    folder = short_folder / "store"
    store = FolderStore(str(folder))
    store.put("k", b"old", old_payload())
    for path in (folder, Path(store.path_of("k"))):
        path.chmod(0o755 if path.is_dir() else 0o644)
    script = f"""
import os
from zfast.errors import StoreError
from zfast.store import FolderStore
store = FolderStore({str(folder)!r})
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
store.get("k").verify()
for call in (lambda: store.put("k", b"new"), lambda: store.delete("k")):
    try:
        call()
    except StoreError as error:
        print(error)
"""
    put, delete = run_python(script).splitlines()
    for line in (put, delete):
        assert f"{folder}/k: Permission denied – the folder must be readable and writable" in line
    assert store.get("k").content == b"old"


def test_a_folder_that_is_removed_is_made_again(store: FolderStore) -> None:
    store.put("k", b"old")
    stored = store.get("k")
    shutil.rmtree(store.basepath)
    assert stored.content == b"old"
    with pytest.raises(KeyNotFoundError, match=r"no object .*/k .* its task computes it"):
        store.get("k")
    store.put("k", b"new")
    store.leases.let_go()
    store.put("k", b"new")
    assert collect(store, budget_nbytes=0).n_held == 1, "its lease went with the old folder"


def test_a_parent_that_cannot_be_made() -> None:
    store = FolderStore("/proc/no/such")
    with pytest.raises(StoreError, match=r"cannot write /proc/no/such/k: .* look at its parents"):
        store.put("k", b"")
    assert not store.exists("k")


@pytest.mark.parametrize("number", sorted({*files._HINTS, errno.ENXIO}))
def test_each_error_says_what_to_do(number: int) -> None:
    error = files.failure("cannot write", "/store/k", OSError(number, os.strerror(number)))
    assert error.errno == number
    assert "/store/k" in str(error)
    assert os.strerror(number) in str(error)
    assert error.hint


# --- what lies in the folder -------------------------------------------------------------------


def test_what_is_no_file_is_refused_and_named(store: FolderStore, tmp_path: Path) -> None:
    store.put("k", b"")
    base = Path(store.basepath)
    outside = tmp_path / "outside"
    shutil.copy(base / "k", outside)
    os.mkfifo(base / "pipe")
    (base / "link").symlink_to(outside)
    with pytest.raises(ObjectCorruptError, match="pipe is neither a file"):
        store.get("pipe")
    with pytest.raises(StoreError, match=r"link: .* a store follows none"):
        store.get("link")
    assert {each.key for _, each in verify_all(store) if each} == {"pipe", "link"}


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_a_bit_flipped_anywhere_or_a_cut_is_found(tmp_path: Path, compression: str | None) -> None:
    store = FolderStore(str(tmp_path / "store"), compression=compression)  # type: ignore[arg-type]
    buffers = [memoryview(b"x" * 20_000), memoryview(b"raw" * 9), memoryview(b"")]
    store.put("k", b"content", Payload(b"header", buffers), b"t" * 16)
    path = Path(store.path_of("k"))
    whole = path.read_bytes()

    @settings(max_examples=300)
    @given(st.integers(0, 8 * len(whole) - 1))
    def flip(bit: int) -> None:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        check(bytes(data))

    @settings(max_examples=100)
    @given(st.integers(0, len(whole) - 1))
    def cut(nbytes: int) -> None:
        check(whole[:nbytes])

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(ObjectCorruptError, match=str(path)):
            verify(store, "k")
        try:
            stored = store.get("k")
            stored.verify()
            payload = stored.payload
        except ObjectCorruptError:
            return
        # What reading does not look at are the zeros between buffers: the value is right.
        assert payload is not None
        assert payload.buffers == buffers

    flip()
    cut()
    path.write_bytes(whole)
    verify(store, "k")


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("x" * 4096, "a part longer than 255 bytes"),
        ("/".join(["x" * 100] * 41), "a path longer than 4095 bytes"),
        ("a/../../etc/passwd", "no '..'"),
        ("/etc/passwd", "outside of the store"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_name(store: FolderStore, key: str, why: str) -> None:
    for call in (store.get, store.exists, store.delete, lambda key: store.put(key, b"")):
        with pytest.raises(ConfigError, match=why) as caught:
            call(key)
        assert key[:10] in str(caught.value)
        assert len(str(caught.value)) < 600
        assert caught.value.hint


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), min_size=1
    )
)
@settings(max_examples=100)
def test_any_key_stays_below_the_basepath(parts: list[str]) -> None:
    store = FolderStore("/base")
    for key in ("/".join(parts), "../" + "/".join(parts)):
        try:
            path = store.path_of(key)
        except ConfigError:
            continue
        assert os.path.normpath(path).startswith("/base/")
        assert not os.path.normpath(path).startswith("/base/.zfast")


# --- several at once -----------------------------------------------------------------------------

WRITER = """
import sys
import tempfile
from zfast.codec import Payload
from zfast.store import FolderStore
store = FolderStore(sys.argv[1])
fill = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    store.put("k", bytes([fill]), Payload(b"h", [memoryview(bytes([fill]) * 300_000)]))
"""


def test_two_writers_of_one_key_and_a_reader(store: FolderStore) -> None:
    store.put("k", b"\1", Payload(b"h", [memoryview(b"\1" * 300_000)]))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, store.basepath, str(fill)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for fill in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        stored = store.get("k")
        stored.verify()
        assert stored.payload is not None
        assert stored.payload.buffers[0][:1] == stored.content
        seen.add(bytes(stored.content))
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert seen <= {b"\1", b"\2"}
    assert store.sweep() >= 0
    assert len(left_by_the_dead(store)) == 1, "only the lease of this process"


def test_a_stopped_writer_keeps_its_file(store: FolderStore) -> None:
    script = f"""
import os
from zfast.store import FolderStore
real = os.rename
def stop(*paths):
    print("written", flush=True)
    input()
    real(*paths)
os.rename = stop
FolderStore({store.basepath!r}).put("k", b"late")
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        os.kill(writer.pid, signal.SIGSTOP)
        assert store.sweep() == 0
        os.kill(writer.pid, signal.SIGCONT)
        writer.communicate(b"go\n")
        assert writer.returncode == 0
    assert store.get("k").content == b"late"


# --- shared file systems ---------------------------------------------------------------------


@pytest.fixture
def shared(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FolderStore]:
    """A store on a file system that is taken for one of several hosts, with an object of 200 kB."""
    store.put("k", b"content", old_payload(), b"t" * 16)
    device = os.stat(store.path_of("k")).st_dev
    table = tmp_path / "mountinfo"
    line = f"36 35 {os.major(device)}:{os.minor(device)} / / rw shared:1 - nfs4 host:/x rw\n"
    table.write_text("1 0 0:1 / /sys rw - sysfs sysfs rw\n" + line)
    monkeypatch.setattr(mounts, "MOUNTS", table)
    mounts.is_shared_between_hosts.cache_clear()
    yield store
    mounts.is_shared_between_hosts.cache_clear()


def test_nothing_is_mapped_where_another_host_may_take_the_pages(shared: FolderStore) -> None:
    stored = shared.get("k")
    assert isinstance(stored.content.obj, bytearray)
    stored.verify()


def test_the_content_is_read_without_the_value(
    shared: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(call: Callable[..., Any], nbytes_of: Callable[[Any], int]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            result = call(*arguments)
            read.append(nbytes_of(result))
            return result

        return count

    monkeypatch.setattr(os, "pread", counted(os.pread, len))
    monkeypatch.setattr(os, "preadv", counted(os.preadv, int))
    shared.leases.let_go()
    assert shared.get_content("k") == (b"content", b"t" * 16)
    assert sum(read) < 1000
    assert collect(shared, budget_nbytes=0).n_held == 1, "what is read is held"


READS: dict[str, Callable[[FolderStore], object]] = {
    "get": lambda store: bytes(store.get("k").content),
    "get_content": lambda store: store.get_content("k").content,
    "describe": lambda store: describe(store, "k").head.nbytes and b"c",
}


@pytest.mark.parametrize("call", ["open", "fstat", "preadv"])
@pytest.mark.parametrize("how", READS)
def test_a_stale_handle_is_looked_up_again(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, call: str, how: str
) -> None:
    store.put("k", b"c")
    path = store.path_of("k")
    real_open, real = os.open, getattr(os, call)
    ours: set[int] = set()
    stale = [True, True]

    def noted(name: str, flags: int, *rest: int) -> int:
        fd = real_open(name, flags, *rest)
        (ours.add if name == path else ours.discard)(fd)
        return fd

    def sometimes(file: Any, *rest: Any) -> Any:
        if (file == path or file in ours) and stale:
            stale.pop()
            raise OSError(errno.ESTALE, "stale")
        return real(file, *rest)

    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(os, call, sometimes)
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    assert READS[how](store) == b"c"
    assert stale == []
    stale += [True] * files.STALE_RETRIES
    with pytest.raises(StoreError, match="mount it again"):
        READS[how](store)
    assert stale == []
    assert len(os.listdir("/dev/fd")) <= before
