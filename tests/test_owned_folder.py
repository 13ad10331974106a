"""Folders that end with their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zfast.errors import ConfigError
from zfast.owned_folder import OwnedFolder, is_owned, owned_folders, sweep

DYING = """
import os, signal, sys
from pathlib import Path
from zfast.owned_folder import OwnedFolder
OwnedFolder(Path(sys.argv[1]), "x")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_dead_owner_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    ours = OwnedFolder(tmp_path, "x")
    other = OwnedFolder(tmp_path, "y")
    (tmp_path / "x-1-without-a-lock").mkdir()
    (tmp_path / "x-2-linked").symlink_to(ours.path)
    died = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    (dead,) = set(owned_folders(tmp_path, "x")) - {ours.path, tmp_path / "x-1-without-a-lock"}
    assert is_owned(ours.path)
    assert not is_owned(dead)
    sweep(tmp_path, "x")
    assert not dead.exists()
    assert (tmp_path / "x-1-without-a-lock").exists()
    assert ours.path.stat().st_mode & 0o777 == 0o700
    assert other.path.exists()
    ours.remove()
    ours.remove()
    assert not is_owned(ours.path)
    other.remove()


def test_what_was_left_half_made_is_swept_once_it_is_old(tmp_path: Path) -> None:
    for name, age_s in (("x-new-young", 0.0), ("x-new-old", 7200.0), ("y-new-old", 7200.0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, time.time() - age_s))
    sweep(tmp_path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-new-young", "y-new-old"]


def test_a_fork_that_gives_up_the_lock_leaves_it_to_its_parent(tmp_path: Path) -> None:
    folder = OwnedFolder(tmp_path, "x")
    pid = os.fork()
    if pid == 0:
        try:
            folder.abandon()
            folder.remove()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert is_owned(folder.path)
    folder.remove()
    assert not folder.path.exists()


def test_an_unusable_parent_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"in {tmp_path}/missing: No such file"):
        OwnedFolder(tmp_path / "missing", "x")
