"""Build `c/stream.c` with the system's compiler, and find the libzmq that pyzmq runs on."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import zmq

from bench.measure import UnavailablePeerError

SOURCE = Path(__file__).resolve().parent / "c" / "stream.c"


def find_libzmq() -> str:
    """Return the libzmq bundled in pyzmq's wheel, else the system's."""
    package = Path(zmq.__file__).resolve().parent
    for folder in (package.parent / "pyzmq.libs", package / ".dylibs", package):
        for path in sorted(folder.glob("libzmq*")):
            return str(path)
    system = ctypes.util.find_library("zmq")
    if system is None:
        raise UnavailablePeerError("no libzmq library beside pyzmq or on the system")
    return system


def build_stream(folder: Path) -> str:
    """Compile the program into `folder` and return its path."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise UnavailablePeerError("no C compiler")
    program = folder / "stream"
    libraries = [] if sys.platform == "darwin" else ["-ldl"]
    command = [compiler, "-O2", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", str(SOURCE)]
    subprocess.run([*command, "-o", str(program), *libraries], check=True)
    return str(program)
