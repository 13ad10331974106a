"""How long objects live: expiry, a size budget, orphans, and what is in use."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Hashable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NoReturn

import pytest

from other_user import not_as_root
from zfast.codec import Payload
from zfast.errors import ConfigError, KeyNotFoundError, StoreError
from zfast.store import BoundedStore, FolderStore, bounded, leases, retention
from zfast.store.files import create_locked
from zfast.store.records import read_record
from zfast.store.retention import collect

DAY_S = 86_400.0
NBYTES = 10_000


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "store"))


def put(
    store: FolderStore, key: str, age_s: float = 0.0, expires_in_s: float | None = None
) -> None:
    """Store an object as Prefect does, used last some time ago, by a process that is gone."""
    expiration = None
    if expires_in_s is not None:
        moment = datetime.now(timezone.utc) + timedelta(seconds=expires_in_s)
        expiration = moment.isoformat().replace("+00:00", "Z")
    metadata = {"storage_key": key, "expiration": expiration, "serializer": {"type": "zfast"}}
    content = json.dumps({"metadata": metadata, "result": "zf1:00"}, separators=(",", ":"))
    store.put(key, content.encode(), Payload(b"h", [memoryview(bytes(NBYTES))]))
    moment_s = time.time() - age_s
    os.utime(store.path_of(key), (moment_s, moment_s))
    store.leases.let_go()


def keys(store: FolderStore) -> set[str]:
    return set(store.list())


def put_in_run(store: FolderStore, key: str) -> None:
    """Store an object in the scope of a run."""
    token = leases.scope.set("run")
    store.put(key, b"")
    leases.scope.reset(token)


def disk_full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_has_expired_is_removed(store: FolderStore) -> None:
    put(store, "never")
    put(store, "later", expires_in_s=DAY_S)
    put(store, "gone", expires_in_s=-1)
    store.put("other/content", b"of any form")
    done = collect(store, dry_run=True)
    assert [each.key for each in done.removed] == ["gone"]
    assert keys(store) == {"never", "later", "gone", "other/content"}
    done = collect(store)
    assert [(each.key, each.reason) for each in done.removed] == [("gone", "expired")]
    assert keys(store) == {"never", "later", "other/content"}
    assert done.n_left == 3
    assert done.nbytes_left == sum(entry.nbytes for entry in store.scan())


def test_a_budget_evicts_what_was_used_longest_ago(store: FolderStore) -> None:
    for age in (3, 1, 2, 4):
        put(store, f"{age} days", age_s=age * DAY_S)
    nbytes = next(store.scan()).nbytes
    done = collect(store, budget_nbytes=2 * nbytes)
    assert [each.key for each in done.removed] == ["4 days", "3 days"]
    assert {each.reason for each in done.removed} == {"evicted"}
    assert keys(store) == {"1 days", "2 days"}
    assert done.nbytes_left == 2 * nbytes
    assert collect(store, budget_nbytes=2 * nbytes).removed == []
    with pytest.raises(ConfigError, match="-1 bytes"):
        collect(store, budget_nbytes=-1)


def test_reading_counts_as_use(store: FolderStore) -> None:
    put(store, "read", age_s=9 * DAY_S)
    put(store, "not read", age_s=8 * DAY_S)
    old = os.stat(store.path_of("read"))
    store.get("read").verify()
    store.leases.let_go()
    if os.stat(store.path_of("read")).st_atime == old.st_atime:
        pytest.skip("this file system does not note when a file was read")
    collect(store, budget_nbytes=next(store.scan()).nbytes)
    assert keys(store) == {"read"}


# --- what is in use ----------------------------------------------------------------------------

USER = """
import sys, os
from zfast.store import FolderStore
store = FolderStore(sys.argv[1])
exec(sys.argv[2])
print("done", flush=True)
sys.stdin.readline()
"""


def user(store: FolderStore, does: str) -> subprocess.Popen[bytes]:
    """A process that has done something to the store, and lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, store.basepath, does],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"
    return process


def end(process: subprocess.Popen[bytes], *, kill: bool = False) -> None:
    if kill:
        process.send_signal(signal.SIGKILL)
    process.communicate(None if kill else b"end\n")
    assert process.returncode == (-signal.SIGKILL if kill else 0)


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize(
    "does", ["store.put('k', b'')", "store.get('k')", "store.exists('k')", "store.get('./k')"]
)
def test_what_a_live_process_uses_stays_until_it_is_gone(
    store: FolderStore, does: str, kill: bool
) -> None:
    put(store, "k", expires_in_s=-1, age_s=DAY_S)
    put(store, "other")
    process = user(store, does)
    # Written again by another, it is still the result that the process knows by this key.
    put(store, "k", expires_in_s=-1, age_s=DAY_S)
    done = collect(store, budget_nbytes=0)
    assert keys(store) == {"k"}
    assert done.n_held >= 1
    end(process, kill=kill)
    done = collect(store, budget_nbytes=0)
    assert keys(store) == set()
    assert done.n_held == 0


def test_a_forked_child_keeps_what_its_parent_used(store: FolderStore, tmp_path: Path) -> None:
    put(store, "k", age_s=DAY_S)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = user(
        store,
        "store.get('k')\n"
        "if os.fork() == 0:\n"
        f"    os.closerange(0, 3); os.open({str(pipe)!r}, os.O_RDONLY); os._exit(0)\n",
    )
    end(process, kill=True)
    collect(store, budget_nbytes=0)
    assert keys(store) == {"k"}
    pipe.write_bytes(b"")  # returns when the child has opened its end: now it goes
    deadline = time.monotonic() + 20
    while keys(store) and time.monotonic() < deadline:
        collect(store, budget_nbytes=0)
    assert keys(store) == set()


def test_a_run_may_let_go_before_it_ends(store: FolderStore) -> None:
    store.put("k", b"")
    assert collect(store, budget_nbytes=0).n_held == 1
    store.leases.let_go()
    assert collect(store, budget_nbytes=0).n_held == 0
    assert keys(store) == set()


def test_what_a_scope_used_is_let_go_with_it(store: FolderStore) -> None:
    for scope, used in ("one", "ab"), ("two", "bc"), (None, "d"):
        token = leases.scope.set(scope)
        for key in used:
            store.put(key, b"")
        leases.scope.reset(token)
    store.leases.end_scope("one")
    collect(store, budget_nbytes=0)
    assert keys(store) == {"b", "c", "d"}
    store.leases.end_scope("two")
    collect(store, budget_nbytes=0)
    assert keys(store) == {"d"}
    store.leases.let_go()
    assert os.listdir(Path(store.basepath, ".zfast", "leases")) == ["gate"]


def test_a_scope_that_ends_during_a_collection_ends_after_it(store: FolderStore) -> None:
    put_in_run(store, "k")
    with store.leases.held() as held:
        store.leases.end_scope("run")  # a finaliser may come at any moment
        assert held == {"k"}
    with store.leases.held() as held:
        assert held == set()


def test_a_full_disk_keeps_more_held_rather_than_less(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_run(store, "run's")
    store.put("k", b"")

    with monkeypatch.context() as patch:
        patch.setattr(leases, "create_locked", disk_full)
        store.leases.end_scope("run")
    folder = Path(store.basepath, ".zfast", "leases")
    (lease,) = [path for path in folder.iterdir() if path.name != leases.GATE]
    assert set(lease.read_bytes().split(b"\0")[:-1]) - {b""} == {b"run's", b"k"}
    store.leases.let_go()


def test_what_a_full_disk_kept_from_being_noted_is_noted_later(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("a", "bbbb", "c"):
        put(store, key)
    write = os.write

    def fill(fd: int, data: bytes) -> int:
        if len(data) <= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:3])

    store.get("a").verify()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "zfast.store"):
        patch.setattr(os, "write", fill)
        store.get("bbbb").verify()
    assert "No space left" in caplog.text
    store.get("c").verify()
    # Other processes know by the file alone.
    folder = Path(store.basepath, ".zfast", "leases")
    (lease,) = [path for path in folder.iterdir() if path.name != leases.GATE]
    assert {b"a", b"bbbb", b"c"} <= set(lease.read_bytes().split(b"\0")[:-1])
    store.leases.let_go()


class CountedLooks(defaultdict[Hashable, set[str]]):
    """What is held, counting how often all of it is looked through."""

    n_looks = 0

    def values(self) -> Any:
        self.n_looks += 1
        return super().values()


def test_holding_one_more_does_not_look_through_all_that_is_held(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("k0", b"")
    held = CountedLooks(set)
    monkeypatch.setattr(store.leases, "_held", held)
    for number in range(1, 100):
        store.leases.hold(f"k{number}")
    assert held.n_looks == 0
    folder = Path(store.basepath, ".zfast", "leases")
    (lease,) = [path for path in folder.iterdir() if path.name != leases.GATE]
    noted = [key for key in lease.read_bytes().split(b"\0") if key]
    assert sorted(noted) == sorted(b"k%d" % number for number in range(100))
    store.leases.let_go()


def test_what_was_not_noted_when_a_scope_ended_on_a_full_disk_is_noted_later(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_run(store, "run's")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk_full)
        store.leases.hold("a")
        store.leases.end_scope("run")
    store.leases.hold("b")
    folder = Path(store.basepath, ".zfast", "leases")
    noted = b"".join(path.read_bytes() for path in folder.iterdir()).split(b"\0")
    assert {b"a", b"b"} <= set(noted)
    store.leases.let_go()


def test_looking_at_objects_is_no_use_of_them(store: FolderStore) -> None:
    put(store, "cold", age_s=9 * DAY_S)
    before = os.stat(store.path_of("cold")).st_atime
    collect(store, budget_nbytes=1 << 30)
    assert os.stat(store.path_of("cold")).st_atime == before


def test_a_forked_child_that_lets_go_lets_go_of_its_own_alone(store: FolderStore) -> None:
    store.put("parent's", b"")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.put("child's", b"")
            store.leases.let_go()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    collect(store, budget_nbytes=0)
    assert keys(store) == {"parent's"}
    store.leases.let_go()


def test_open_objects_stay_readable_when_they_are_evicted(store: FolderStore) -> None:
    put(store, "k")
    stored = store.get("k")
    store.leases.let_go()
    collect(store, budget_nbytes=0)
    with pytest.raises(KeyNotFoundError, match="expired or evicted"):
        store.get("k")
    stored.verify()


def test_nothing_is_removed_where_nobody_can_say_what_is_used(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", expires_in_s=-1)

    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(leases.fcntl, "lockf", unsupported)
    with pytest.raises(StoreError, match=r"in use.*No locks.*nolock"):
        collect(store, budget_nbytes=0)
    store.put("other", b"")
    assert keys(store) == {"k", "other"}


@pytest.mark.parametrize("closed", ["folder", "lease"])
def test_nothing_is_removed_while_leases_cannot_be_read(short_folder: Path, closed: str) -> None:
    store = FolderStore(f"{short_folder}/store")
    put(store, "used")
    using = user(store, "store.get('used')")
    folder = Path(store.basepath, ".zfast", "leases")
    unreadable = folder if closed == "folder" else max(folder.iterdir(), key=_size)
    try:
        collector = FolderStore(store.basepath)
        with not_as_root(short_folder):
            unreadable.chmod(0o300 if closed == "folder" else 0o200)
            with pytest.raises(StoreError, match="cannot see which objects"):
                collect(collector, budget_nbytes=0)
        assert keys(store) == {"used"}
    finally:
        end(using)


def _size(path: Path) -> int:
    return path.stat().st_size


def test_a_collector_that_is_stopped_holds_up_no_writer(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "GATE_WAIT_S", 0.05)
    put(store, "k")
    process = user(store, "held = store.leases.held(); held.__enter__()")
    store.put("other", b"")
    with pytest.raises(StoreError, match=r"gate.*was stopped"):
        collect(store, budget_nbytes=0)
    end(process)
    store.leases.let_go()
    collect(store, budget_nbytes=0)
    assert keys(store) == set()


def test_readers_and_a_collector_at_once(store: FolderStore) -> None:
    """Whatever a reader was told is there, it can read until it lets go."""
    stop = threading.Event()
    script = (
        "\nfor i in range(150):\n"
        "    store.put(f'mine/{os.getpid()}/{i}', b'x')\n"
        "    if store.exists('shared'): store.get('shared')\n"
        "for i in range(150): store.get(f'mine/{os.getpid()}/{i}').verify()\n"
    )

    def collect_often() -> None:
        other = FolderStore(store.basepath)
        while not stop.is_set():
            collect(other, budget_nbytes=0)
            put(other, "shared")

    put(store, "shared")
    collector = threading.Thread(target=collect_often)
    collector.start()
    try:
        processes = [user(store, script) for _ in range(2)]
    finally:
        stop.set()
        collector.join()
    for process in processes:
        end(process)


# --- the clock -------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_evicts_nothing(store: FolderStore) -> None:
    put(store, "written before", age_s=-DAY_S)
    put(store, "written after")
    put(store, "gone", expires_in_s=-1)
    done = collect(store, budget_nbytes=0)
    assert keys(store) == {"written before", "written after"}
    assert done.clock_behind_s == pytest.approx(DAY_S, abs=60)
    assert collect(store, budget_nbytes=0, reset_times=True, dry_run=True).removed == []
    done = collect(store, budget_nbytes=0, reset_times=True)
    assert done.clock_behind_s == 0
    assert keys(store) == set()


def test_a_clock_that_was_set_back_expires_later_not_sooner(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", expires_in_s=10)
    real = time.time
    monkeypatch.setattr(retention.time, "time", lambda: real() - 365 * DAY_S)
    assert collect(store, budget_nbytes=0).removed == []
    monkeypatch.setattr(retention.time, "time", lambda: real() + 11)
    assert [each.key for each in collect(store).removed] == ["k"]


def test_clocks_of_hosts_may_differ_a_little(store: FolderStore) -> None:
    put(store, "of another host", age_s=-retention.CLOCK_TOLERANCE_S / 2)
    put(store, "of ours", age_s=1)
    collect(store, budget_nbytes=next(store.scan()).nbytes)
    assert len(keys(store)) == 1


# --- orphans, strangers and damage -----------------------------------------------------------


def test_orphans_are_removed(store: FolderStore) -> None:
    put(store, "k")
    end(user(store, "store.get('k')"), kill=True)
    (Path(store.basepath) / ".zfast" / ("0" * 32)).write_bytes(b"half an object")
    fd, _ = create_locked(str(Path(store.basepath) / ".zfast"))  # a writer's, who lives
    assert [collect(store, dry_run=True).n_orphans for _ in range(2)] == [2, 2]
    assert collect(store).n_orphans == 2
    os.close(fd)
    assert collect(store).n_orphans == 1
    assert keys(store) == {"k"}


def test_what_is_not_ours_is_left_alone_and_named(store: FolderStore) -> None:
    put(store, "k")
    put(store, "damaged", age_s=DAY_S)
    base = Path(store.basepath)
    (base / "README").write_text("not an object")
    data = bytearray((base / "damaged").read_bytes())
    data[20] ^= 1
    (base / "damaged").write_bytes(data)
    done = collect(store, budget_nbytes=0)
    assert keys(store) == {"README", "damaged"}
    assert sorted(Path(str(error.args[0]).split()[0]).name for error in done.failures) == [
        "README",
        "damaged",
    ]


def test_a_damaged_expiration_removes_nothing(store: FolderStore) -> None:
    put(store, "k", expires_in_s=1000 * DAY_S)
    path = Path(store.path_of("k"))
    data = path.read_bytes()
    year = str((datetime.now(timezone.utc) + timedelta(days=1000)).year).encode()
    path.write_bytes(data.replace(b'"expiration":"' + year, b'"expiration":"1999'))
    done = collect(store)
    assert keys(store) == {"k"}
    assert "checksum of its header" in str(done.failures[0])


def test_an_object_that_was_written_again_since_stays(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", expires_in_s=-1)
    real = retention._remove

    def late(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(retention, "_remove", real)
        put(store, "k")
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "_remove", late)
    assert collect(store).removed == []
    assert keys(store) == {"k"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"zf1:00", b"{", b'{"metadata":', b'{"metadata":{"expiration":"soon"}}'),
        *(b'{"metadata":[]}', b'{"metadata":{"expiration":5}}', b'{"metadata":' + b"[" * 16_000),
        b'{"metadata":{"expiration":"9999-99-99T00:00:00Z"}}',
    ],
)
def test_content_of_any_form_says_nothing(content: bytes) -> None:
    assert read_record(content) is None


@pytest.mark.parametrize(
    "text", ["2024-01-02T03:04:05Z", "2024-01-02T03:04:05", "2024-01-02T04:04:05+01:00"]
)
def test_forms_of_an_expiration(text: str) -> None:
    record = read_record(b'{"metadata":{"expiration":"%s"},"result":"x' % text.encode())
    assert record is not None
    assert record.expires_s == datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp()


# --- a store that keeps its size by itself ---------------------------------------------------


def test_writers_keep_a_store_within_its_budget(tmp_path: Path) -> None:
    basepath = str(tmp_path / "store")
    budget = 20 * NBYTES
    for index in range(100):
        store = BoundedStore(basepath, budget_nbytes=budget)
        put(store, str(index), age_s=100 - index)
        assert sum(entry.nbytes for entry in store.scan()) <= budget + 2 * NBYTES
    assert "99" in keys(store)
    assert "0" not in keys(store)


def test_one_writer_looks_by_what_it_wrote(tmp_path: Path) -> None:
    budget = 100 * NBYTES
    store = BoundedStore(str(tmp_path / "store"), budget_nbytes=budget)
    for index in range(300):
        put(store, str(index), age_s=300 - index)
    assert sum(entry.nbytes for entry in store.scan()) <= budget * (1 + bounded.LOOK_AFTER_SHARE)


def test_an_object_is_stored_whatever_the_budget_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = BoundedStore(str(tmp_path / "store"), budget_nbytes=1)
    store.put("mine", bytes(NBYTES))
    assert keys(store) == {"mine"}, "this process uses it"
    put(store, "written before", age_s=-DAY_S)
    with caplog.at_level(logging.WARNING):
        store.put("k", bytes(NBYTES))
    assert "gc --reset-times" in caplog.text
    with pytest.raises(ConfigError):
        BoundedStore(str(tmp_path), budget_nbytes=-1)
