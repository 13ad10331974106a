"""Runs a script in a process of its own: an arena is started once, and forks leave traces."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence

_BEGIN = """
import gc, os, sys, threading
import numpy as np
import zfast
from zfast import arena
from zfast.errors import ArenaError, ArenaFullError, ArenaOnDiskWarning, ConfigError
MIB = 1 << 20

def address(array):
    return array.ctypes.data

def in_child(check, fork=os.fork):
    '''Run a function in a forked child; fail if it fails there.'''
    pid = fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        finally:
            import traceback
            traceback.print_exc() if status else None
            sys.stderr.flush()
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run_alone(script: str, *, prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> str:
    """What the script printed; its failure is the test's.

    ``prefix`` is a command that runs it; ``np``, ``zfast``, ``arena``, its errors, ``address`` and
    ``in_child`` are there already.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", _BEGIN + textwrap.dedent(script)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout
