"""Importing zfast: light, silent, and clear about what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip(), done.stderr.strip()


def test_importing_zfast_imports_next_to_nothing_and_opens_nothing():
    out, err = python(
        "import os, sys, threading\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "import zfast\n"
        "heavy = {'prefect', 'pandas', 'numpy', 'zmq', 'pyarrow', 'polars'} & set(sys.modules)\n"
        "print(heavy, len(os.listdir('/proc/self/fd')) - before, threading.active_count())"
    )
    assert (out, err) == ("set() 0 1", "")


def test_the_channel_needs_no_prefect_and_opens_no_socket_by_itself():
    out, err = python(
        "import sys, threading\n"
        "from zfast import Channel\n"
        "print('prefect' in sys.modules, 'pandas' in sys.modules, threading.active_count())"
    )
    assert (out, err) == ("False False 1", "")


def test_every_public_name_is_there():
    out, err = python(
        "import warnings\n"
        "warnings.simplefilter('default')\n"
        "import zfast\n"
        "print([name for name in zfast.__all__ if not hasattr(zfast, name)])"
    )
    assert out == "[]", err


def test_an_unknown_name_is_an_attribute_error():
    import zfast

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        zfast.nonsense  # noqa: B018


def test_prefect_names_without_prefect_say_what_to_install():
    _, err = python("import sys; sys.modules['prefect'] = None\nfrom zfast import ZfastTaskRunner")
    assert "zfast.ZfastTaskRunner needs Prefect: pip install 'zfast[prefect]'" in err


BREAK = {
    "a pyzmq that is too old": (
        "import zmq; zmq.pyzmq_version_info = lambda: (26, 4, 0)",
        "needs pyzmq 27 or later",
    ),
    "a backend that is not Cython's": (
        "import zmq; zmq.backend.Socket = type('Socket', (), {'__module__': 'zmq.backend.cffi'})",
        "needs pyzmq's Cython backend, this one has zmq.backend.cffi",
    ),
    "a libzmq that cannot be found": (
        "import zmq.backend.cython._zmq as z; z.__file__ = '/nowhere.so'",
        "zfast cannot reach libzmq inside pyzmq",
    ),
    "a library without libzmq's functions": (
        "import zmq.backend.cython._zmq as z, _ssl; z.__file__ = _ssl.__file__",
        "zmq_version was not found",
    ),
    "a struct that has shrunk": (
        "import zmq.backend.cython._zmq as z; z.Socket = type('Socket', (), {'__module__': "
        "'zmq.backend.cython._zmq'})",
        "built for another pyzmq",
    ),
    "a struct that has grown": (
        "import zmq.backend.cython._zmq as z; z.Socket = type('Socket', (z.Socket,), "
        "{'__slots__': ('a', 'b'), '__module__': 'zmq.backend.cython._zmq'})",
        "built for another pyzmq",
    ),
}


@pytest.mark.parametrize("what", BREAK)
def test_a_pyzmq_that_does_not_fit_is_an_import_error_that_says_so(what):
    breakage, message = BREAK[what]
    _, err = python(f"{breakage}\nfrom zfast import Channel")
    last = err.splitlines()[-1]
    assert last.startswith("ImportError: "), err
    assert message in last
    assert "install" in last
