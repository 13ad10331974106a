"""The virtual environment that commands run in, and how they run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
#: What is built, tested and thrown away; git does not look at it.
BUILD = ROOT / "build"


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


PYTHON = python_of(VENV)


def prepare(extras: str) -> None:
    """Make the virtual environment, and install zfast in it if anything it is made of changed."""
    if not PYTHON.exists():
        print("making the virtual environment .venv …", flush=True)
        if run(sys.executable, "-m", "venv", VENV):
            sys.exit("cannot make a virtual environment: install Python's venv module")
    fingerprint = source_fingerprint()
    stamps = {path: path.read_text() for path in VENV.glob("zfast-*.stamp")}
    held = {
        extra
        for path, text in stamps.items()
        if text == fingerprint
        for extra in path.stem.removeprefix("zfast-").split("-")
    }
    if held.issuperset(extras.split(",")):
        return
    # What was built from these very sources is there: only what the extras need is missing.
    source = "zfast" if held else "."
    doing = "installing what is missing" if held else "building and installing zfast"
    print(f"{doing} …", flush=True)
    status = run(PYTHON, "-m", "pip", "install", "--quiet", f"{source}[{extras}]")
    if status:
        sys.exit(f"installing zfast failed (pip exit status {status})")
    for path, text in stamps.items():
        if text != fingerprint:
            path.unlink()
    (VENV / f"zfast-{extras.replace(',', '-')}.stamp").write_text(fingerprint)


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


def new_venv(folder: Path, python: str | Path = sys.executable) -> Path:
    """An empty virtual environment in ``folder``, made anew; its interpreter.

    Raises:
        SystemExit: This Python cannot make one.
    """
    if run(python, "-m", "venv", "--clear", folder):
        sys.exit(f"{python} cannot make a virtual environment")
    return python_of(folder)


def install(python: Path, *requirements: str | Path) -> int:
    """Install packages; pip's exit status."""
    return run(python, "-m", "pip", "install", "--quiet", *requirements)


def run(
    *command: str | Path, env: dict[str, str] | None = None, folder: str | Path | None = None
) -> int:
    """Run a program in the foreground, the environment's tools on its path; its exit status."""
    path = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, **(env or {})}
    parts = [str(part) for part in command]
    return subprocess.run(parts, env=environment, cwd=folder, check=False).returncode


def run_all(*commands: tuple[str | Path, ...]) -> int:
    """Run each of the commands, whatever became of the others; the first failure's status."""
    statuses = [run(*command) for command in commands]
    return next((status for status in statuses if status), 0)
