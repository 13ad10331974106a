"""Source distribution and wheels: built, examined, installed in empty environments, tested."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from dev.environment import BUILD, PYTHON, ROOT, install, new_venv, run

DIST = BUILD / "dist"
#: What the tests of an installed wheel need beside it: no pandas, no Prefect, no extra of zfast's.
TOOLS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")
#: Tests that a bare installation passes: the wire format, streams, and values over sockets.
SMOKE_TESTS = ("tests/test_wire_format.py", "tests/test_streams.py", "tests/test_smoke.py")
#: What a wheel may hold, by suffix. Anything else, above all a library, got in by mistake.
SUFFIXES = frozenset({".py", ".pyi", ".so", ".typed", ".html", ".svg", ".js", ".css", ".json", ""})


def wheels(arguments: list[str]) -> int:
    """Build, examine, install and test the sdist, the compiled wheel and the pure one.

    Args:
        arguments: ``--pure`` or ``--compiled`` for one of the wheels alone.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    kinds = [kind for kind in ("compiled", "pure") if f"--{kind}" in arguments]
    for kind in kinds or ["compiled", "pure"]:
        if status := _one_wheel(kind):
            print(f"the {kind} wheel is not good", file=sys.stderr)
            return status
    return 0


def _one_wheel(kind: str) -> int:
    folder = DIST / kind
    environment = {"ZFAST_PURE": "1"} if kind == "pure" else {}
    # That it says so is tested by itself; here a warning would be an error.
    core = {"ZFAST_CORE": "plain"} if kind == "pure" else {}
    # From the sdist, so that a file that it lacks is missed here.
    if status := run(PYTHON, "-m", "build", "--outdir", folder, ".", env=environment):
        return status
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    if kind == "compiled" and sys.platform == "linux":
        repaired = folder / "repaired"
        if status := run(PYTHON, "-m", "auditwheel", "repair", "--wheel-dir", repaired, wheel):
            return status
        (wheel,) = repaired.glob("*.whl")
        run(PYTHON, "-m", "auditwheel", "show", wheel)
    return (
        run(PYTHON, "-m", "twine", "check", "--strict", sdist, wheel)
        or run(PYTHON.parent / "check-wheel-contents", wheel)
        or examine(wheel, pure=kind == "pure")
        or _test_installed(BUILD / f"venv-{kind}", wheel, SMOKE_TESTS, core)
        or (
            kind == "compiled"
            and _test_installed(BUILD / "venv-sdist", sdist, SMOKE_TESTS[-1:], {})
        )
    )


def examine(wheel: Path, *, pure: bool) -> int:
    """Say what must not be in a wheel, or is missing; 1 if anything is."""
    names = zipfile.ZipFile(wheel).namelist()
    faults = [
        f"{name} does not belong in a wheel"
        for name in names
        if Path(name).suffix not in SUFFIXES and ".dist-info/" not in name
    ]
    faults += [f"{name} is a bundled library" for name in names if "libzmq" in name]
    compiled = {name.split("/")[-1].split(".")[0] for name in names if name.endswith(".so")}
    wanted = set() if pure else {"_core", "_arena", "_watchdog"}
    faults += [f"the extension {name} is missing or too much" for name in compiled ^ wanted]
    for fault in faults:
        print(f"{wheel.name}: {fault}", file=sys.stderr)
    return int(bool(faults))


def _test_installed(
    folder: Path, package: Path, tests: Iterable[str], environment: dict[str, str]
) -> int:
    python = new_venv(folder)
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    return install(python, package, *TOOLS) or run(
        *pytest, *tests, folder=ROOT, env={"PYTHONPATH": "", **environment}
    )
