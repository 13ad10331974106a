"""The soak tests of the store, in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="measures memory in /proc"
)


def soak(*arguments: str) -> dict[str, Any]:
    script = Path(__file__).with_name("soak_store.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_random_kills_lose_nothing_that_was_acknowledged() -> None:
    report = soak("--kills", "40", "--minutes", "0")
    assert report["writers killed"] > 10
    assert report["acknowledged objects"] > 10


def test_many_processes_at_once() -> None:
    report = soak("--kills", "0", "--minutes", "0.07", "--processes", "6")
    assert report["operations"] > 100
