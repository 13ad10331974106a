"""Everything a developer runs, each in one command; needs only Python, pip and a C compiler.

    python3 dev.py demo [ARGS]   build zfast and run its demo on real data
    python3 dev.py test [ARGS]   build zfast and run its tests (ARGS go to pytest)
    python3 dev.py lint          ruff, cython-lint, mypy, import-linter, zizmor
    python3 dev.py types         stubs against compiled modules; a user's code under two checkers
    python3 dev.py sanitize      tests of compiled code under ASan, UBSan and TSan
    python3 dev.py audit         the workflow files, and known holes in dependencies
    python3 dev.py docs          the documentation site, in build/docs; warnings are errors
    python3 dev.py wheels        sdist and wheel, each installed, tested and examined
    python3 dev.py matrix [ARGS] the tests on oldest and newest Pythons and dependencies
    python3 dev.py bench [ARGS]  the benchmarks (ARGS go to ``python -m bench run``)
    python3 dev.py bench-compare [REVISION]  it and the working tree in turns; fails if slower
    python3 dev.py soak [ARGS]   10,000 hand-overs with workers killed and processes forked
    python3 dev.py soak-store [ARGS]   the result store: 500 kills, 16 processes for 10 minutes
    python3 dev.py soak-runner [ARGS]  every fault of the runner's workers 20 times, and a storm
    python3 dev.py soak-direct [ARGS]  graphs of tasks over hosts that are killed; --network
    python3 dev.py soak-security [ARGS]  1,000,000 wrong frames of strangers, and to each socket
    python3 dev.py soak-events   1,000 subscribers that join and leave, some of them stuck
    python3 dev.py soak-shapes   flows of 2,000 tasks, 100 deep, 1,000 wide and nested; --runner
    python3 dev.py soak-states   a flow of 300 tasks with faults: states told against the API's
    python3 dev.py screenshots   pictures of the live views; needs Chromium

The first call makes a virtual environment in ``.venv``; later ones rebuild what changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from dev import checks, docs, matrix, wheels
from dev.environment import PYTHON, ROOT, prepare, run


def demo(arguments: list[str]) -> int:
    """Run ``zfast demo``."""
    return run(PYTHON.parent / "zfast", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Run the tests against the installed package; without arguments all but the long ones."""
    return run(PYTHON, "-m", "pytest", *(arguments or ["-n", "auto"]))


def bench(arguments: list[str]) -> int:
    """Run the benchmarks and print their report."""
    return run(PYTHON, "-m", "bench", "run", *arguments)


def bench_compare(arguments: list[str]) -> int:
    """Measure a revision, main by default, and the working tree in turns; 1 if this is slower."""
    return run(PYTHON, "-m", "bench", "revisions", *(arguments or ["main"]))


def soak(name: str) -> Callable[[list[str]], int]:
    """The command that runs one of the soak tests."""
    return lambda arguments: run(PYTHON, Path("tests") / f"soak_{name}.py", *arguments)


def screenshots(arguments: list[str]) -> int:
    """Take pictures of the live views for the documentation."""
    return run(PYTHON, Path("tests") / "make_screenshots.py", *arguments)


#: What each command calls, and the extras that it needs. The lint tools look at everything, so
#: they need everything.
COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "demo": (demo, "demo"),
    "test": (test, "test"),
    "lint": (checks.lint, "test,lint"),
    "types": (checks.types, "test,lint"),
    "sanitize": (checks.sanitize, "test"),
    "audit": (checks.audit, "test,audit"),
    "docs": (docs.build, "test,docs"),
    "wheels": (wheels.wheels, "test,wheels"),
    "matrix": (matrix.matrix, ""),
    "bench": (bench, "test"),
    "bench-compare": (bench_compare, "test"),
    "soak": (soak("handover"), "test"),
    "soak-store": (soak("store"), "test"),
    "soak-runner": (soak("runner"), "test"),
    "soak-direct": (soak("direct"), "test"),
    "soak-security": (soak("security"), "test"),
    "soak-events": (soak("events"), "test"),
    "soak-shapes": (soak("shapes"), "test"),
    "soak-states": (soak("states"), "test"),
    "screenshots": (screenshots, "test"),
}


def main(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 – any Python may run this file
        print("zfast needs Python 3.10 or later", file=sys.stderr)
        return 2
    command, extras = COMMANDS[arguments[0]]
    os.chdir(ROOT)
    if extras:
        prepare(extras)
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
