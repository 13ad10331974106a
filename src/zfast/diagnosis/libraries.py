"""Can the compiled core be used, and can its libzmq encrypt?"""

from __future__ import annotations

from collections.abc import Iterator

from zfast.diagnosis.finding import Finding, Level

_CHECK = "libzmq"


def check_libraries() -> Iterator[Finding]:
    """Import the compiled core and ask libzmq what it was built with."""
    try:
        import zmq

        from zfast import _core
    except ImportError as error:
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"the compiled core cannot be used: {error}",
            hint="pip install --force-reinstall pyzmq zfast, from wheels for this platform",
        )
        return
    del _core
    if not zmq.has("curve"):
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"libzmq {zmq.zmq_version()} was built without CURVE: no tcp endpoint can be opened",
            hint="install pyzmq's own wheel: pip install --force-reinstall --only-binary :all: "
            "pyzmq",
        )
        return
    yield Finding(_CHECK, Level.OK, f"libzmq {zmq.zmq_version()} with CURVE")
