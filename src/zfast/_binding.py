"""Loads the compiled core, or the plain one, or says what to install."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from types import ModuleType

PYZMQ_FLOOR = (27, 0)
_HINT = "install the pyzmq wheel for Linux or macOS: pip install --only-binary pyzmq 'pyzmq>=27'"

#: ``plain`` where the core in Python is wanted. Set by the first process that has no other: those
#: that it starts have nothing to say about it.
CORE_VARIABLE = "ZFAST_CORE"
#: What stands for each compiled module.
PLAIN_MODULES = {
    "_core": "zfast._plain",
    "_arena": "zfast._plain.arena",
    "_watchdog": "zfast._plain.watchdog",
}


def load(name: str) -> ModuleType:
    """Import a compiled module of zfast, or what stands for it where zfast came without.

    Args:
        name: ``_core``, ``_arena`` or ``_watchdog``.

    Raises:
        ImportError: As ``load_core``.
    """
    if not _is_plain():
        return load_core() if name == "_core" else importlib.import_module(f"zfast.{name}")
    module = importlib.import_module(PLAIN_MODULES[name])
    sys.modules[f"zfast.{name}"] = module
    return module


def _is_plain() -> bool:
    wanted = os.environ.get(CORE_VARIABLE)
    if wanted not in (None, "", "plain", "compiled"):
        raise ImportError(f"{CORE_VARIABLE}={wanted}: it may be 'plain' or 'compiled'")
    if wanted or not _is_pure_wheel():
        return wanted == "plain"
    warnings.warn(
        "zfast came without its compiled core: everything works, slower, and nothing is handed "
        f"over in shared memory ({CORE_VARIABLE}=plain says that this is wanted)",
        RuntimeWarning,
        stacklevel=2,
    )
    os.environ[CORE_VARIABLE] = "plain"
    return True


def _is_pure_wheel() -> bool:
    """Whether zfast was installed without any compiled module, for any Python."""
    return not any(importlib.util.find_spec(f"zfast.{name}") for name in PLAIN_MODULES)


def load_core() -> ModuleType:
    """Import ``zfast._core``.

    Raises:
        ImportError: pyzmq is too old, has another backend, or is laid out otherwise than the one
            that the core was built with; or the core was not built for this Python.
    """
    import zmq

    version = zmq.pyzmq_version_info()[:2]
    if version < PYZMQ_FLOOR:
        raise ImportError(f"zfast needs pyzmq 27 or later, this is {zmq.__version__}: {_HINT}")
    if zmq.backend.Socket.__module__ != "zmq.backend.cython._zmq":
        raise ImportError(
            f"zfast needs pyzmq's Cython backend, this one has {zmq.backend.Socket.__module__}; "
            f"PyPy is not supported yet. Else {_HINT}"
        )
    try:
        with warnings.catch_warnings():
            # Cython only warns when a struct it knows has grown.
            warnings.filterwarnings("error", ".* size changed", RuntimeWarning)
            return importlib.import_module("zfast._core")
    except (ValueError, RuntimeWarning) as error:
        raise ImportError(
            f"zfast's core was built for another pyzmq than {zmq.__version__} ({error}): reinstall "
            "zfast, or build it here: pip install --force-reinstall --no-binary zfast zfast"
        ) from error
    except ModuleNotFoundError as error:
        if error.name != "zfast._core":
            raise
        raise ImportError(
            "zfast's compiled core is not there for this Python: install a wheel, or a C compiler "
            "and the source: pip install zfast"
        ) from error
