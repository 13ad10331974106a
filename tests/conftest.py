"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# The machine may be busy: how long an example takes says nothing.
hypothesis.settings.register_profile("zfast", deadline=None)
hypothesis.settings.load_profile("zfast")

# Before anything imports Prefect: no test reads or writes the home of who runs them.
_home = tempfile.mkdtemp(prefix="zfast-test-home-")
os.environ["PREFECT_HOME"] = _home
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("ZFAST_STORAGE_PATH", None)
# What is printed, and how wide, is as the tests have it, not as who runs them likes it.
for _name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
    os.environ.pop(_name, None)

# What of Prefect draws random numbers on threads that outlive a test: delays of retries, pings.
_RANDOM_IN_BACKGROUND = (
    "prefect.utilities.math",
    "websockets.asyncio.connection",
    "websockets.client",
)

# Prefect leaves the TCP connections of its API clients to the garbage collector.
_LEFT_BY_PREFECT = ("unclosed transport <_Selector", "unclosed <socket.socket .*proto=6")


def pytest_configure(config: pytest.Config) -> None:
    # A shell makes what it runs in the background deaf to Ctrl-C, and so would be all children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for message in _LEFT_BY_PREFECT:
        config.addinivalue_line("filterwarnings", f"ignore:{message}:ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("ZFAST_CORE") == "plain":
        skip = pytest.mark.skip(reason="speaks of what only the compiled core has")
        for item in items:
            if item.get_closest_marker("compiled"):
                item.add_marker(skip)


def pytest_unconfigure() -> None:
    # Pytest collects garbage after this, with the filters it had before it read this file.
    for message in _LEFT_BY_PREFECT:
        warnings.filterwarnings("ignore", message, ResourceWarning)
    shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The URL of a Prefect API with an empty database, also set for this process."""
    from prefect.testing import utilities

    from foremen import free_port

    # From a source of their own: Hypothesis, while it draws, takes any use of the common one for
    # a strategy's.
    for name in _RANDOM_IN_BACKGROUND:
        importlib.import_module(name).random = random.Random()  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        # The server binds its port seconds later: by then a connection may have been given it.
        patch.setattr(utilities, "_find_available_port", free_port)
        stack.enter_context(utilities.prefect_test_harness(server_startup_timeout=120))
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


@pytest.fixture(scope="session")
def oidc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certified issuer is installed: once, for all of xdist's workers."""
    from oidc_issuer import install

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "oidc"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return install(folder)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def short_folder():
    """A folder short enough for a socket's path, wherever TMPDIR is; other users may look at it."""
    with tempfile.TemporaryDirectory(prefix="zf", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def runtime_root(monkeypatch):
    """Where hubs make their folders, short enough for a socket's path."""
    root = tempfile.mkdtemp(prefix="zf", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", root)
    yield Path(root)
    assert list(Path(root).iterdir()) == []
    os.rmdir(root)


@pytest.fixture
def start_hub(runtime_root, notes, monkeypatch):
    """Starts hubs; when they are closed nothing of them is left."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from hub_jobs import Jobs
    from zfast.runner.hub import Hub
    from zfast.runner.policy import Policy

    hubs = []

    def start(max_workers=2, **policy):
        hub = Hub(
            Policy(max_workers, **policy),
            executor="hub_executor:FunctionExecutor",
            environment={"ZFAST_TEST": "yes"},
            on_note=lambda job_id, topic, data: notes.append((topic, bytes(data))),
        )
        hubs.append(hub)
        return Jobs(hub)

    yield start
    for hub in hubs:
        pids = hub.worker_pids
        hub.close()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.fixture
def journal(tmp_path):
    from hub_jobs import Journal

    return Journal(tmp_path / "journal")


@pytest.fixture(scope="module")
def key_folder(tmp_path_factory):
    """Keys of a server and of its clients."""
    from zfast.security.key_folder import KeyFolder
    from zfast.security.roles import Role

    clients = (
        ("worker-1", Role.WORKER),
        ("worker-2", Role.WORKER),
        ("viewer", Role.VIEWER),
        ("stranger", None),
    )
    path = tmp_path_factory.mktemp("remote") / "keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZFAST_KEYS", str(path))
        folder = KeyFolder(path)
        folder.new("default", "server")
        for name, role in clients:
            pair = folder.new("default", name).pair
            if role is not None:
                folder.authorize(pair.public, name, role, "default")
        yield path


@pytest.fixture
def security(key_folder):
    from zfast.security.server_security import ServerSecurity

    made = ServerSecurity.load()
    yield made
    made.close()


@pytest.fixture
def foremen(tmp_path):
    from foremen import Foremen

    made = Foremen(tmp_path)
    yield made
    made.end()


@pytest.fixture
def network():
    """Makes networks that can be cut, in front of an endpoint."""
    from tcp_proxy import Proxy

    proxies = []

    def make(endpoint):
        proxies.append(Proxy(endpoint))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def start_remote(runtime_root, notes, monkeypatch, security, foremen, network):
    """Starts hubs that other hosts may join."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from hub_jobs import Jobs, settled
    from zfast.runner.hub import Hub
    from zfast.runner.policy import Policy
    from zfast.runner.remote_socket import RemoteEndpoint

    hubs = []

    def start(max_workers=0, url="tcp://127.0.0.1:*", insecure=False, **policy):
        hub = Hub(
            Policy(max_workers, **policy),
            executor="hub_executor:FunctionExecutor",
            environment={"ZFAST_TEST": "yes"},
            on_note=lambda job_id, topic, data: notes.append((topic, bytes(data))),
            remote=RemoteEndpoint(url, None if insecure else security, insecure),
            versions={"zfast": "0.1.0"},
        )
        hubs.append(hub)
        return Jobs(hub)

    yield start
    for hub in hubs:
        hub.close()
    # A foreman takes its folder away when its flow run is over.
    settled(lambda: not list(runtime_root.iterdir()))
