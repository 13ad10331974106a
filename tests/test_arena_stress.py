"""The allocator without Python, from many threads and with forks, under each sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ARENA = HERE.parent / "src" / "arena"


def compiler() -> list[str]:
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[:1]


def same_addresses() -> list[str]:
    """What runs a program without random addresses; nothing where that cannot be had."""
    command = ["setarch", "-R"]
    if shutil.which("setarch") is None:
        return []
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False)
    return [] if allowed.returncode else command


@pytest.mark.skipif(not ARENA.is_dir(), reason="needs the sources")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_threads_and_forks_at_once(tmp_path, sanitizer):
    program = tmp_path / "arena_stress"
    built = subprocess.run(
        [
            *compiler(), "-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", f"-I{ARENA}",
            str(HERE / "arena_stress.c"), *map(str, sorted(ARENA.glob("*.c"))),
            "-lpthread", "-o", str(program),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if built.returncode and ("cannot find" in built.stderr or "unrecognized" in built.stderr):
        pytest.skip(f"this compiler has no -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    environment["TSAN_OPTIONS"] = "halt_on_error=1:die_after_fork=0"
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    # ThreadSanitizer wants the old, smaller randomisation of addresses.
    ran = subprocess.run(
        [*same_addresses(), str(program), "4", "20000", "40"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "allocations" in ran.stdout
