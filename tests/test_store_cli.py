"""`zfast store`: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from other_user import closed_to_its_owner
from test_cli import run_zfast
from zfast.cli.store import gc, ls, verify
from zfast.cli.store_options import parse_nbytes
from zfast.codec import Payload
from zfast.errors import ConfigError, StoreError
from zfast.store import FolderStore
from zfast.store.format import MAGIC
from zfast.store.inspection import verify_all
from zfast.store.retention import remove_damaged

RECORD = b'{"metadata":{"expiration":%s,"serializer":{"type":"zfast"}},"result":"zf1:00"}'


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Three objects, one expired; nobody uses them."""
    store = FolderStore(str(tmp_path / "store"), compression="zstd")
    store.put("a/b", RECORD % b"null", Payload(b"h", [memoryview(bytes(100_000))]), b"t" * 16)
    store.put("gone", RECORD % b'"2001-01-01T00:00:00Z"')
    store.put("plain", b"anything")
    store.leases.let_go()
    return store


def run(store: FolderStore, *arguments: str) -> tuple[int, str, str]:
    done = run_zfast("store", *arguments, "--basepath", store.basepath)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def run_json(store: FolderStore, *arguments: str) -> tuple[int, Any]:
    status, output, _ = run(store, *arguments, "--json")
    return status, json.loads(output)


def damage(store: FolderStore, key: str) -> None:
    path = Path(store.path_of(key))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_ls(store: FolderStore) -> None:
    Path(store.basepath, "README").write_text("not an object")
    status, output, rest = run(store, "ls")
    assert status == 0
    assert [line.split()[-1] for line in output.splitlines()] == ["README", "gone", "plain", "a/b"]
    assert "not an object" in output.splitlines()[0]
    assert "4 objects" in rest
    status, found = run_json(store, "ls")
    assert found["basepath"] == store.basepath
    objects = {each["key"]: each for each in found["objects"]}
    assert objects["gone"]["expires"] == "2001-01-01T00:00:00Z"
    assert objects["a/b"]["serializer"] == "zfast"
    assert "error" in objects["README"]


def test_show(store: FolderStore) -> None:
    status, output, _ = run(store, "show", "a/b")
    assert status == 0
    assert "buffer 0        100.0 kB, zstd" in output
    _, found = run_json(store, "show", "a/b")
    assert found["format_version"] == 2
    assert found["buffers"][0]["nbytes"] == 100_000
    assert found["buffers"][0]["stored_nbytes"] < 1000
    status, _, rest = run(store, "show", "nothing")
    assert (status, "there is no object" in rest) == (1, True)


def test_verify_names_each_damaged_object(store: FolderStore) -> None:
    assert "3 objects" in run(store, "verify")[1]
    status, found = run_json(store, "verify")
    assert (status, found["n_objects"], found["damaged"]) == (0, 3, [])
    damage(store, "a/b")
    damage(store, "plain")
    status, output, _ = run(store, "verify")
    assert status == 3
    assert output.count("cannot be read: the checksum of") == 2
    status, found = run_json(store, "verify")
    assert status == 3
    assert {each["key"] for each in found["damaged"]} == {"a/b", "plain"}
    status, output, _ = run(store, "verify", "--delete")
    assert (status, "2 damaged, 2 deleted" in output) == (0, True)
    assert list(store.list()) == ["gone"]


def test_verify_deletes_nothing_that_is_not_surely_a_damaged_object(store: FolderStore) -> None:
    base = Path(store.basepath)
    whole = Path(store.path_of("plain")).read_bytes()
    (base / "profiles.toml").write_text("active = 'local'")
    (base / "prefect.db").write_bytes(b"SQLite format 3\0" + bytes(4096))
    (base / "empty").touch()
    (base / "part-of-a-magic").write_bytes(MAGIC[:7])
    (base / "of-a-newer-zfast").write_bytes(MAGIC + b"\x03\0" + whole[10:])
    (base / "cut-off-and-newer").write_bytes(MAGIC + b"\x03\0")
    (base / "unreadable").symlink_to(base / "unreadable")
    os.mkfifo(base / "pipe")
    left = set(store.list()) - {"a/b"}
    assert run(store, "verify")[0] == 4
    damage(store, "a/b")
    assert run(store, "verify")[0] == 3
    status, output, _ = run(store, "verify", "--delete")
    assert (status, set(store.list())) == (4, left)
    assert "3 objects" in output
    assert "1 damaged, 1 deleted, 8 files or folders not checked" in output
    assert output.count("left alone: ") == 8
    assert "remove the file" in output
    (base / "cut-off").write_bytes(whole[:9])
    status, found = run_json(store, "verify", "--delete")
    assert (status, set(store.list())) == (4, left)
    assert [(each["key"], each["deleted"]) for each in found["damaged"]] == [("cut-off", True)]
    assert {each["key"] for each in found["unchecked"]} == left - {"gone", "plain"}


def test_verify_deletes_nothing_that_a_live_process_uses(store: FolderStore) -> None:
    damage(store, "plain")
    store.exists("plain")
    status, output, _ = run(store, "verify", "--delete")
    assert status == 3
    assert "1 damaged, 1 stay because a live process uses them" in output
    store.leases.let_go()
    assert run(store, "verify", "--delete")[0] == 0
    assert list(store.list()) == ["gone", "a/b"]


@pytest.mark.parametrize("verb", [ls, verify, gc])
@pytest.mark.parametrize("closed", [".", "a"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    short_folder: Path, capsys: pytest.CaptureFixture[str], verb: Callable[..., int], closed: str
) -> None:
    store = FolderStore(f"{short_folder}/store")
    for key in ("a/b", "plain"):
        store.put(key, b"anything")
    assert verb(basepath=Path(store.basepath)) == 0  # and imports what that needs
    capsys.readouterr()
    with closed_to_its_owner(Path(store.basepath, closed), short_folder):
        if closed == ".":
            with pytest.raises(StoreError, match="Permission denied"):
                verb(basepath=Path(store.basepath))
            return
        assert verb(basepath=Path(store.basepath)) == 4
        output = "".join(capsys.readouterr())
        assert f"cannot look at {store.basepath}/a: Permission denied" in output
        assert "1 objects" in output
    assert verb(basepath=Path(store.basepath)) == 0


def test_what_is_written_again_while_others_are_verified_is_not_deleted(store: FolderStore) -> None:
    times = os.stat(store.path_of("plain"))
    damage(store, "plain")
    os.utime(store.path_of("plain"), ns=(times.st_atime_ns, times.st_mtime_ns))
    damaged = [entry for entry, trouble in verify_all(store) if trouble]
    store.put("plain", b"anything")  # as long as it was, and of the same moment
    os.utime(store.path_of("plain"), ns=(times.st_atime_ns, times.st_mtime_ns))
    store.leases.let_go()
    assert [entry.key for entry in damaged] == ["plain"]
    assert remove_damaged(store, damaged).removed == []
    assert store.exists("plain")


def test_gc(store: FolderStore) -> None:
    Path(store.basepath, ".zfast", "0" * 32).write_bytes(b"half an object")
    status, output, _ = run(store, "gc", "--dry-run")
    assert (status, "1 objects would be removed" in output) == (0, True)
    assert "1 orphans would be removed" in output
    assert store.exists("gone")
    store.leases.let_go()
    status, found = run_json(store, "gc")
    assert status == 0
    assert [(each["key"], each["reason"]) for each in found["removed"]] == [("gone", "expired")]
    store.exists("plain")
    status, output, _ = run(store, "gc", "--budget", "1B")
    assert status == 3, "the store exceeds its budget"
    assert "1 stay because a live process uses them" in output
    assert list(store.list()) == ["plain"]
    future = time.time() + 1_000_000
    os.utime(store.path_of("plain"), (future, future))
    store.leases.let_go()
    status, _, rest = run(store, "gc", "--budget", "0")
    assert (status, "the clock was set back" in rest) == (3, True)
    assert run(store, "gc", "--budget", "0", "--reset-times")[0] == 0
    assert list(store.list()) == []


@pytest.mark.parametrize("verb", [["ls"], ["show", "k"], ["verify"], ["gc"]])
def test_without_a_store_nothing_is_made(tmp_path: Path, verb: list[str]) -> None:
    missing = tmp_path / "missing"
    done = run_zfast("store", *verb, "--basepath", str(missing))
    assert done.returncode == 1
    assert f"there is no store {missing}" in done.stderr.replace("\n", "")
    assert "--basepath" in done.stderr
    assert not missing.exists()


def test_a_path_that_cannot_be_looked_at_is_no_missing_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="File name too long"):
        ls(basepath=tmp_path / ("x" * 300))


def test_the_store_is_found_by_the_environment(store: FolderStore) -> None:
    environment = f"import os; os.environ['ZFAST_STORAGE_PATH'] = {store.basepath!r}"
    assert "plain" in run_zfast("store", "ls", before=environment).stdout


def test_an_empty_path_is_not_the_current_folder(store: FolderStore) -> None:
    here = f"import os; os.chdir({store.basepath!r}); os.environ['PREFECT_HOME'] = '/nowhere';"
    for verb in (["ls", "--basepath", ""], ["gc", "--basepath="], ["import", ""], ["export", ""]):
        done = run_zfast("store", *verb, before=here)
        assert (done.returncode, "may not be empty" in done.stderr) == (2, True)
    unset = here + "os.environ['ZFAST_STORAGE_PATH'] = ''"
    assert "no store /nowhere/zfast-results" in run_zfast("store", "ls", before=unset).stderr


def test_help_imports_nothing_heavy() -> None:
    report = (
        "import atexit, sys; heavy = ('prefect', 'numpy', 'zmq', 'xxhash');"
        "atexit.register(lambda: print('imported', [n for n in heavy if n in sys.modules]))"
    )
    for arguments in (["--help"], ["gc", "--help"]):
        done = run_zfast("store", *arguments, before=report)
        assert done.returncode == 0
        assert "imported []" in done.stdout
    assert "exit status" in run_zfast("store", "--help").stdout.lower()


def test_a_bar_on_a_terminal(store: FolderStore) -> None:
    leader, follower = pty.openpty()
    main = "import sys; from zfast.cli import main; main()"
    command = [sys.executable, "-c", main, "store", "verify", "--basepath", store.basepath]
    done = subprocess.run(
        command,
        stderr=follower,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
        check=True,
        timeout=60,
    )
    os.close(follower)
    shown = ""
    with contextlib.suppress(OSError):  # so a terminal ends that nobody writes to any more
        while part := os.read(leader, 100_000):
            shown += part.decode(errors="replace")
    os.close(leader)
    assert b"3 objects" in done.stdout
    assert "verify" in shown
    assert "3/3" in shown


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("10", 10), ("1kB", 1000), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), ("1T", 10**12)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "many", "1XB", "1 G B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_nbytes(text)
