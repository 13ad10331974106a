"""Hosts of their own, under load, while keys are rotated and one is revoked."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from network_hosts import WAIT_FOR_API, Hosts, hosts
from oidc_issuer import Provider, policy_text
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role

#: Receives from everyone; tells, once a line comes in, what came from whom and when the last did.
_SERVER = """
import json, sys, threading, time
from zfast import Channel
from zfast.errors import ZfastError
from zfast.security.server_security import ServerSecurity
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
came, last = {}, {}
rx = Channel.bind("tcp://0.0.0.0:*", security=ServerSecurity.load("prod"))
print(rx.endpoint, flush=True)
while not ended.is_set():
    try:
        name, number = rx.recv(timeout=0.2)
    except ZfastError:
        continue
    came.setdefault(name, []).append(number)
    last[name] = time.monotonic()
print(json.dumps([came, last]), flush=True)
rx.abort()
"""

#: Sends numbers as fast as they are taken; one whose channel was lost before it was closed well
#: cannot know what arrived, so it tells what it was sure of and what it said in all.
_CLIENT = """
import json, sys, threading
from zfast import Channel
from zfast.errors import ZfastError
from zfast.security.client_security import ClientSecurity
endpoint, name = sys.argv[1:]
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
tx = Channel.connect(endpoint, security=ClientSecurity.load("prod", name=name))
number, error = 0, ""
try:
    while not ended.is_set():
        tx.send((name, number), timeout=20)
        if number == 0:
            print("speaks", flush=True)
        number += 1
        ended.wait(0.0005)
    tx.close(timeout=20)
except ZfastError as failure:
    error = type(failure).__name__ + ": " + str(failure)
    tx.abort()
print(json.dumps([number, error]), flush=True)
"""


def zfast(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-c", "from zfast.cli import main; main()", *arguments],
        check=True,
        timeout=60,
        capture_output=True,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> KeyFolder:
    """The server's keys and two workers': on one disk, as a test may."""
    monkeypatch.setenv("ZFAST_KEYS", str(tmp_path / "keys"))
    made = KeyFolder(tmp_path / "keys")
    made.new("prod", "server")
    for name in ("worker-0", "worker-1"):
        made.authorize(made.new("prod", name).pair.public, name, Role.WORKER, "prod")
    return made


@contextlib.contextmanager
def ending(*processes: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell_to_end(process: subprocess.Popen[str]) -> list[object]:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    return json.loads(told(process))


def test_between_hosts_a_rotation_loses_nothing_and_a_revoked_key_is_cut(folder):
    with hosts(2) as net:
        server = net.start(net.server, "-c", _SERVER)
        port = told(server).rpartition(":")[2]
        clients = [
            net.start(host, "-c", _CLIENT, f"tcp://{net.server_address(i)}:{port}", f"worker-{i}")
            for i, host in enumerate(net.clients)
        ]
        with ending(server, *clients):
            assert [told(client) for client in clients] == ["speaks", "speaks"]
            zfast("keys", "rotate", "-e", "prod", "--grace-hours", "1")
            # Whoever comes now may still know the old key alone, or the new one.
            zfast("keys", "revoke", "worker-1")
            revoked_s = time.monotonic()
            number, error = json.loads(told(clients[1]))
            cut_s = time.monotonic()
            assert "worker-1" not in error
            assert "refused our key" in error or "connection" in error, error
            sent, error = tell_to_end(clients[0])
            assert error == ""  # its close waited until all was read
            came, last = tell_to_end(server)
    assert came["worker-0"] == list(range(sent))
    assert came["worker-1"] == list(range(len(came["worker-1"])))
    assert len(came["worker-1"]) <= number + 1
    assert last["worker-1"] - revoked_s < 1
    assert cut_s - revoked_s < 5


#: A flow whose only workers are on other hosts: each task writes when it begins, and where.
_DRIVER = """
import json, os, pathlib, sys, time
from prefect import flow, get_client, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext
from zfast import ZfastTaskRunner
from zfast.security.server_security import ServerSecurity
journal, n_tasks = pathlib.Path(sys.argv[1]), int(sys.argv[2])
runner = ZfastTaskRunner(
    0,
    lease_s=3,  # so long a host may be away before its tasks run elsewhere
    endpoint="tcp://0.0.0.0:5555",
    security=ServerSecurity.load("prod"),
)
@task
def square(number):
    with journal.open("a") as lines:
        lines.write(f"{os.environ['ZFAST_TEST_HOST']} {time.time()}\\n")
    time.sleep(0.05)
    while number >= 40 and not journal.with_name("journal.revoked").exists():
        time.sleep(0.01)
    return number * number
@flow(task_runner=runner)
def squares():
    results = square.map(range(n_tasks)).result()
    return results, FlowRunContext.get().flow_run.id
results, flow_run_id = squares()
with get_client(sync_client=True) as client:
    def completed():
        of_flow = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        return sum(run.state_name == "Completed" for run in client.read_task_runs(
            flow_run_filter=of_flow, limit=200))
    deadline_s = time.monotonic() + 30
    while completed() < n_tasks and time.monotonic() < deadline_s:
        time.sleep(0.2)  # the API learns of task runs from events
    print(json.dumps([results, completed()]), flush=True)
"""
_WORKER = "import sys; from zfast.cli import main; sys.exit(main())"
N_TASKS = 100


def api_of(net: Hosts, home: Path) -> tuple[subprocess.Popen[str], str]:
    """Prefect's API on the server's host, and its URL, the same from all hosts."""
    server = net.start(
        net.server,
        *("-m", "prefect", "server", "start", "--host", "0.0.0.0", "--port", "4200"),
        PREFECT_HOME=str(home),
        PREFECT_API_URL="",
    )
    url = f"http://{net.server_address(0)}:4200/api"
    waiting = net.start(net.server, "-c", WAIT_FOR_API, url)
    waiting.communicate()
    assert waiting.returncode == 0
    return server, url


@pytest.mark.long
def test_a_flow_on_other_hosts_with_a_rotation_and_a_worker_revoked(
    folder, oidc_folder, tmp_path, monkeypatch
):
    """One comes by a token, under a key that nobody authorized; the other's key is revoked."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    journal = tmp_path / "journal"
    journal.touch()

    def begun(name: str) -> list[float]:
        lines = [line.split() for line in journal.read_text().splitlines()]
        return [float(when) for host, when in lines if host == name]

    with hosts(2) as net, contextlib.ExitStack() as stack:
        provider = Provider(oidc_folder, host=("ip", "netns", "exec", net.server))
        stack.callback(provider.close)
        folder.new("prod", "nobody")
        policy = folder.path / "policy.toml"
        policy.write_text(f"{policy.read_text()}\n{policy_text(provider.url)}")
        token = tmp_path / "token"
        token.touch(mode=0o600)
        token.write_bytes(provider.token("eks-pod"))
        options = (("--key", "nobody", "--token-file", str(token)), ("--key", "worker-1"))
        net.route_to_server()
        server, url = api_of(net, tmp_path)
        stack.enter_context(ending(server))
        monkeypatch.setenv("PREFECT_API_URL", url)
        driver = net.start(net.server, "-c", _DRIVER, str(journal), str(N_TASKS))
        workers = [
            net.start(
                host, "-c", _WORKER, "worker", f"tcp://{net.server_address(i)}:5555",
                "--workers", "1", "-e", "prod", *options[i],
                ZFAST_TEST_HOST=f"worker-{i}",
            )
            for i, host in enumerate(net.clients)
        ]  # fmt: skip
        with ending(driver, *workers):
            deadline_s = time.monotonic() + 60
            while not (begun("worker-0") and begun("worker-1")):
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            zfast("keys", "rotate", "-e", "prod", "--grace-hours", "1")
            zfast("keys", "revoke", "worker-1")
            revoked_s = time.time()
            journal.with_name("journal.revoked").touch()  # what was in the middle goes on
            results, n_completed = json.loads(told(driver))
    assert results == [number * number for number in range(N_TASKS)]
    assert n_completed == N_TASKS
    assert max(begun("worker-1")) < revoked_s + 1
    assert max(begun("worker-0")) > revoked_s + 1
