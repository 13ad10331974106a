"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

import pytest

# Before anything imports Prefect: no test reads or writes the home of who runs them.
_home = tempfile.mkdtemp(prefix="zfast-test-home-")
os.environ["PREFECT_HOME"] = _home
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("ZFAST_STORAGE_PATH", None)


# Prefect leaves the TCP connections of its API clients to the garbage collector.
_LEFT_BY_PREFECT = ("unclosed transport <_Selector", "unclosed <socket.socket .*proto=6")


def pytest_configure(config: pytest.Config) -> None:
    for message in _LEFT_BY_PREFECT:
        config.addinivalue_line("filterwarnings", f"ignore:{message}:ResourceWarning")


def pytest_unconfigure() -> None:
    # Pytest collects garbage after this, with the filters it had before it read this file.
    for message in _LEFT_BY_PREFECT:
        warnings.filterwarnings("ignore", message, ResourceWarning)
    shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The URL of a Prefect API with an empty database, also set for this process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=60):
        from prefect.settings import PREFECT_API_URL

        url = PREFECT_API_URL.value()
        assert url is not None
        yield url


@pytest.fixture
def run_python(prefect_api: str) -> Callable[[str], str]:
    """Run a script in another process that uses the same Prefect API; give what it printed."""

    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "ERROR"},
            cwd=_home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
