"""Loads the compiled core, or says what to install."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

PYZMQ_FLOOR = (27, 0)
_HINT = "install the pyzmq wheel for Linux or macOS: pip install --only-binary pyzmq 'pyzmq>=27'"


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
