"""Everything a developer runs, each in one command; needs only Python, pip and a C compiler.

    python3 dev.py demo [ARGS]   build zfast and run its demo on real data
    python3 dev.py test [ARGS]   build zfast and run its tests (ARGS go to pytest)
    python3 dev.py lint          ruff, cython-lint, mypy, import-linter
    python3 dev.py sanitize      tests of compiled code under ASan, UBSan and TSan
    python3 dev.py bench [ARGS]  the benchmarks (ARGS go to ``python -m bench run``)
    python3 dev.py soak [ARGS]   10,000 hand-overs with workers killed and processes forked
    python3 dev.py soak-store [ARGS]   the result store: 500 kills, 16 processes for 10 minutes
    python3 dev.py soak-runner [ARGS]  every fault of the runner's workers 20 times, and a storm
    python3 dev.py soak-security [ARGS]  1,000,000 wrong frames of strangers, beside honest clients
    python3 dev.py soak-events   1,000 subscribers that join and leave, some of them stuck
    python3 dev.py soak-states   a flow of 300 tasks with faults: states told against the API's
    python3 dev.py screenshots   pictures of the live views; needs Chromium

The first call makes a virtual environment in ``.venv``; later ones rebuild what changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
SANITIZED = ROOT / "build" / "sanitized"
#: Extras each command needs. The lint tools look at everything, so they need everything.
EXTRAS = {
    "demo": "demo",
    "test": "test",
    "lint": "test,lint",
    "sanitize": "test",
    "bench": "bench",
    "soak": "test",
    "soak-store": "test",
    "soak-runner": "test",
    "soak-events": "test",
    "soak-security": "test",
    "soak-states": "test",
    "screenshots": "test",
}
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


def main(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    if not arguments or arguments[0] not in EXTRAS:
        print(__doc__, file=sys.stderr)
        return 2
    command, rest = arguments[0], arguments[1:]
    if sys.version_info < (3, 10):  # noqa: UP036 – any Python may run this file
        print("zfast needs Python 3.10 or later", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    prepare(EXTRAS[command])
    run_command = {
        "demo": demo,
        "test": test,
        "lint": lint,
        "sanitize": sanitize,
        "bench": bench,
        "soak": soak,
        "soak-store": soak_store,
        "soak-runner": soak_runner,
        "soak-events": soak_events,
        "soak-security": soak_security,
        "soak-states": soak_states,
        "screenshots": screenshots,
    }[command]
    return run_command(rest)


def demo(arguments: list[str]) -> int:
    """Run ``zfast demo``."""
    return run(PYTHON.parent / "zfast", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Run the tests against the installed package; all of them, on all cores, without arguments."""
    return run(PYTHON, "-m", "pytest", *(arguments or ["-n", "auto"]))


def lint(_: list[str]) -> int:
    """Run every static check; the first failure's status."""
    tools = PYTHON.parent
    pyx = [str(path) for path in sorted(Path("src").rglob("*.pyx"))]
    checks = (
        (tools / "ruff", "check", "."),
        (tools / "ruff", "format", "--check", "."),
        (tools / "cython-lint", *pyx),
        (PYTHON, "-m", "mypy"),
        (tools / "lint-imports",),
    )
    statuses = [run(*check) for check in checks]
    return next((status for status in statuses if status), 0)


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


def bench(arguments: list[str]) -> int:
    """Run the benchmarks and print their report."""
    return run(PYTHON, "-m", "bench", "run", *arguments)


def soak(arguments: list[str]) -> int:
    """Run the soak test of hand-overs."""
    return run(PYTHON, Path("tests") / "soak_handover.py", *arguments)


def soak_store(arguments: list[str]) -> int:
    """Run the soak tests of the result store."""
    return run(PYTHON, Path("tests") / "soak_store.py", *arguments)


def soak_runner(arguments: list[str]) -> int:
    """Run the soak test of the runner's faults."""
    return run(PYTHON, Path("tests") / "soak_runner.py", *arguments)


def soak_events(arguments: list[str]) -> int:
    """Run the soak test of events."""
    return run(PYTHON, Path("tests") / "soak_events.py", *arguments)


def soak_security(arguments: list[str]) -> int:
    """Run the soak test of guarded sockets."""
    return run(PYTHON, Path("tests") / "soak_security.py", *arguments)


def soak_states(arguments: list[str]) -> int:
    """Compare the states that a subscriber is told with those that Prefect's API has."""
    return run(PYTHON, Path("tests") / "soak_states.py", *arguments)


def screenshots(arguments: list[str]) -> int:
    """Take pictures of the live views for the documentation."""
    return run(PYTHON, Path("tests") / "make_screenshots.py", *arguments)


def prepare(extras: str) -> None:
    """Make the virtual environment, and install zfast in it if anything it is made of changed."""
    if not PYTHON.exists():
        print("making the virtual environment .venv …", flush=True)
        if run(sys.executable, "-m", "venv", VENV):
            sys.exit("cannot make a virtual environment: install Python's venv module")
    stamp = VENV / f"zfast-{extras.replace(',', '-')}.stamp"
    fingerprint = source_fingerprint()
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    print("building and installing zfast …", flush=True)
    status = run(PYTHON, "-m", "pip", "install", "--quiet", f".[{extras}]")
    if status:
        sys.exit(f"installing zfast failed (pip exit status {status})")
    for other in VENV.glob("zfast-*.stamp"):
        if other.read_text() != fingerprint:
            other.unlink()
    stamp.write_text(fingerprint)


def source_fingerprint() -> str:
    """A digest of everything the installed package is made of."""
    digest = hashlib.sha256(sys.version.encode())
    files = [ROOT / "pyproject.toml", ROOT / "CMakeLists.txt"]
    files += sorted(path for path in (ROOT / "src").rglob("*") if path.suffix != ".pyc")
    for path in files:
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run(*command: str | Path, env: dict[str, str] | None = None) -> int:
    """Run a program in the foreground, the environment's tools on its path; its exit status."""
    path = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, **(env or {})}
    return subprocess.run([str(part) for part in command], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
