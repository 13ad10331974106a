"""Tests of the installed package on the oldest and newest Pythons and dependencies."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dev.environment import BUILD, ROOT, install, new_venv, run
from dev.wheels import SMOKE_TESTS, TOOLS

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: The floors in pyproject.toml. Prefect has no other than 3.8.8 and its later patch releases.
OLDEST = ("pyzmq==27.0.*", "numpy==1.26.*", "pandas==2.2.*", "msgspec==0.19.*")
NEWEST = ("pyzmq", "numpy", "pandas", "msgspec")
#: NumPy 1.26 and msgspec 0.19 have wheels for these alone.
OLDEST_ON = ("3.10", "3.11", "3.12")
TESTS = (*SMOKE_TESTS, "tests/test_codec.py", "tests/test_channel.py")
PREFECT_TESTS = ("tests/test_prefect_storage.py", "tests/test_task_runner.py")


@dataclass(frozen=True)
class Cell:
    """One Python with one set of dependencies."""

    python: Path
    version: str
    name: str
    requirements: tuple[str, ...]

    @property
    def title(self) -> str:
        """For a person."""
        return f"Python {self.version}, {self.name} dependencies"


def matrix(arguments: list[str]) -> int:
    """Build a wheel for each Python that is here, and test it with old and new dependencies.

    Args:
        arguments: ``--list`` only says what would be run; ``--prefect`` runs tests of Prefect's
            side too; anything else picks cells whose title has it.
    """
    flags = {argument for argument in arguments if argument.startswith("--")}
    words = [argument for argument in arguments if argument not in flags]
    pythons = _pythons()
    cells = [
        Cell(python, version, name, requirements)
        for version, python in pythons.items()
        for name, requirements in (("oldest", OLDEST), ("newest", NEWEST))
        if name == "newest" or version in OLDEST_ON
    ]
    cells = [cell for cell in cells if all(word in cell.title for word in words)]
    results: list[tuple[str, str]] = [
        (f"Python {version}", "not on this machine")
        for version in VERSIONS
        if version not in pythons
    ]
    for cell in cells:
        if "--list" in flags:
            results.append((cell.title, "would be tested"))
            continue
        status = _run(cell, "--prefect" in flags)
        results.append((cell.title, f"failed ({status})" if status else "ok"))
    for title, verdict in results:
        print(f"{title:<40} {verdict}")
    return int(any(verdict.startswith("failed") for _, verdict in results))


def _pythons() -> dict[str, Path]:
    """Interpreters by version, of those that zfast supports: on the path, or pyenv's."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in VERSIONS:
        on_path = shutil.which(f"python{version}")
        candidates = [*([on_path] if on_path else []), *pyenv.glob(f"{version}.*/bin/python3")]
        for candidate in candidates:
            command = [str(candidate), "-c", "import sys; print(sys.executable)"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:  # a version manager's shim may stand for nothing
                found[version] = Path(done.stdout.strip())
                break
    return found


def _run(cell: Cell, prefect: bool) -> int:
    print(f"---- {cell.title}", flush=True)
    python = new_venv(BUILD / "matrix" / f"{cell.version}-{cell.name}", cell.python)
    extras = "[prefect,security,compression]" if prefect else "[security]"
    more = ("pyarrow", "polars", "pytest-benchmark", *TOOLS)
    status = install(python, f"zfast{extras} @ {ROOT.as_uri()}", *cell.requirements, *more)
    if status:
        return status
    run(python, "-m", "pip", "list", "--format", "freeze")
    tests = TESTS + (PREFECT_TESTS if prefect else ())
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    return run(*pytest, *tests, folder=ROOT, env={"PYTHONPATH": ""})
