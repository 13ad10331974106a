"""Checks of the sources: style, types, imports; tests of compiled code under sanitizers."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

from dev.environment import BUILD, PYTHON, run, run_all

SANITIZED = BUILD / "sanitized"
SANITIZED_TESTS = (
    "tests/test_wire_format.py",
    "tests/test_core_sockets.py",
    "tests/test_channel.py",
    "tests/test_streams.py",
    "tests/test_arena.py",
    "tests/test_arena_allocator.py",
    "tests/test_arena_faults.py",
    "tests/test_arena_fork.py",
    "tests/test_arena_stress.py",
)


def lint(_: list[str]) -> int:
    """Run every static check; the first failure's status."""
    tools = PYTHON.parent
    pyx = [str(path) for path in sorted(Path("src").rglob("*.pyx"))]
    return run_all(
        (tools / "ruff", "check", "."),
        (tools / "ruff", "format", "--check", "."),
        (tools / "cython-lint", *pyx),
        (PYTHON, "-m", "mypy"),
        (tools / "lint-imports",),
        (tools / "zizmor", "--offline", "--no-progress", "--quiet", ".github"),
    )


def types(_: list[str]) -> int:
    """Check the stubs against the compiled modules, and a user's code against the types."""
    tools = PYTHON.parent
    users = sorted(Path("tests/typing").glob("*.py"))
    return run_all(
        (
            PYTHON, "-m", "mypy.stubtest", "zfast._core", "zfast._arena", "zfast._watchdog",
            "--allowlist", "tests/typing/stubtest-allowlist.txt", "--ignore-disjoint-bases",
            "--ignore-unused-allowlist",
        ),
        (PYTHON, "-m", "mypy", "--strict", "--no-incremental", *users),
        (tools / "pyright", "--pythonpath", PYTHON, *users),
    )  # fmt: skip


def audit(_: list[str]) -> int:
    """Audit the workflow files and the installed dependencies.

    A dependency of which nothing is known, as where the index tells no vulnerabilities, fails too.
    """
    tools = PYTHON.parent
    freeze = (str(PYTHON), "-m", "pip", "freeze", "--exclude", "zfast")
    installed = BUILD / "audited.txt"
    installed.parent.mkdir(exist_ok=True)
    installed.write_text(subprocess.run(freeze, capture_output=True, text=True, check=True).stdout)
    return run_all(
        (tools / "zizmor", "--offline", "--no-progress", ".github"),
        (
            tools / "pip-audit", "--strict", "--no-deps", "--disable-pip",
            "--progress-spinner", "off", "--requirement", installed,
        ),
    )  # fmt: skip


def sanitize(arguments: list[str]) -> int:
    """Build the core with sanitizers beside the installed one, and run its tests on it."""
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade")
    define = "cmake.define.ZFAST_SANITIZE=ON"
    status = run(*pip, "--target", SANITIZED, "-C", define, "-C", "cmake.build-type=Debug", ".")
    if status:
        return status
    compiler = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    runtime = [
        subprocess.run(
            [compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for library in ("libasan.so", "libubsan.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(runtime),
        # Python's own arenas would hide overruns, and it leaks by design at exit.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8:abort_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(SANITIZED),
    }
    tests = arguments or ["-n", "auto", *SANITIZED_TESTS]
    return run(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, env=environment)
