"""The core in plain Python: the tests of the compiled one, and what it says of itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zfast import _core

TESTS = Path(__file__).parent
#: What both cores pass alike, and quickly; CI's matrix and `dev.py wheels` run more.
SHARED_TESTS = ("test_wire_format.py", "test_streams.py", "test_smoke.py")

pytestmark = pytest.mark.compiled  # here they are run in another process


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_it_passes_the_tests_of_the_compiled_core():
    done = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(str(TESTS / name) for name in SHARED_TESTS),
        ZFAST_CORE="plain",
    )
    assert done.returncode == 0, done.stdout


def test_it_has_every_name_that_zfast_uses():
    done = python(
        "-c",
        "from zfast import _core; print(*(n for n in dir(_core) if n[0] != '_'))",
        ZFAST_CORE="plain",
    )
    sources = (TESTS.parent / "src" / "zfast").rglob("*.py")
    used = {name for path in sources for name in re.findall(r"_core\.(\w+)", path.read_text())}
    used &= set(dir(_core))
    assert len(used) > 15
    assert used - {"Block", "Frame"} <= set(done.stdout.split())


NO_CORE = (
    "import sys, importlib.util as u\n"
    "find = u.find_spec\n"
    "hidden = ('zfast._core', 'zfast._arena', 'zfast._watchdog')\n"
    "u.find_spec = lambda name, *a: None if name in hidden else find(name, *a)\n"
)


def test_without_a_compiled_core_zfast_says_so_once_and_its_children_do_not():
    done = python(
        "-c",
        NO_CORE + "import subprocess\nfrom zfast import Channel, Batch, arena\n"
        "subprocess.run([sys.executable, '-c', 'from zfast import Channel'], check=True)\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("zfast came without its compiled core") == 1


def test_when_it_is_wanted_nothing_is_said():
    done = python("-W", "error", "-c", "from zfast import Channel", ZFAST_CORE="plain")
    assert (done.returncode, done.stderr) == (0, "")


def test_shared_memory_is_refused_with_what_to_do():
    done = python("-c", "import zfast; zfast.share_memory()", ZFAST_CORE="plain")
    assert "ArenaError: this zfast has no shared memory" in done.stderr


def test_a_core_that_does_not_exist_is_refused():
    done = python("-c", "from zfast import Channel", ZFAST_CORE="quick")
    assert "ImportError: ZFAST_CORE=quick: it may be 'plain' or 'compiled'" in done.stderr
