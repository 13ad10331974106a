"""A planted secret is looked for wherever one could leak, over whole runs of real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from foremen import importing_tests
from zfast.security.curve_keys import KeyPair
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role

TOKEN = "eyJhbGciOiJub25lIn0.planted-token-that-nobody-may-see"

#: Runs a guarded Channel, everything that goes wrong with one, and a flow; prints what each shows.
_SCRIPT = """
import json, logging, os, subprocess, sys, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from concurrent.futures import ThreadPoolExecutor
from prefect import flow, task
import zfast
from zfast import Channel, ZfastTaskRunner
from zfast.errors import ZfastError
from zfast.security.audit import counters
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair, SecretKey
from zfast.security.server_security import ServerSecurity

WITH_CHANNEL = sys.argv[1] == "channel"

def look():
    import psutil
    ran = subprocess.run([sys.executable, "-S", "-c", "import os; print(dict(os.environ))"],
                         capture_output=True, text=True).stdout
    own = [open(f"/proc/self/{name}", "rb").read().decode("latin-1")
           for name in ("environ", "cmdline")]
    return [dict(os.environ), ran, own, sys.argv]

@task
def child():
    return look()

@flow(task_runner=ZfastTaskRunner(max_workers=1))
def run():
    return child.submit().result()

if __name__ == "__main__":
    shown = []
    if WITH_CHANNEL:
        server, client = ServerSecurity.load("prod"), ClientSecurity.load("prod")
        assert client.token()
        with Channel.bind("tcp://127.0.0.1:*", security=server) as rx:
            pool = ThreadPoolExecutor(1)
            heard = pool.submit(rx.recv, timeout=30)  # a call, in which the token is taken
            with Channel.connect(rx.endpoint, security=client) as tx:
                tx.send("hello", timeout=30)
                assert heard.result() == "hello"
                pool.shutdown()
                shown += [repr(rx), repr(tx), repr(tx._link), repr(vars(tx._link._port))]
            stranger = ClientSecurity(KeyPair.generate(), client.servers)
            other = Channel.connect(rx.endpoint, security=stranger)
            wrong = Channel.connect(
                rx.endpoint, security=ClientSecurity(client.pair, [stranger.pair.public]))
            for refused in (other, wrong):
                try:
                    refused.send(1, timeout=20)
                except ZfastError:
                    shown.append(traceback.format_exc())
                refused.abort()
        secret = client.pair.secret.reveal().decode()
        for broken in (secret[:-1], secret + "x", secret.lower()):
            try:
                SecretKey(broken)
            except ZfastError:
                shown.append(traceback.TracebackException(
                    *sys.exc_info(), capture_locals=False).format.__call__)
                shown[-1] = "".join(shown[-1]())
        for thing in (server, client, client.pair, server._state, server.access):
            shown += [repr(thing), str(thing)]
        shown.append(repr(counters()))
        del secret, broken
    shown.append(run())
    json.dump(shown, sys.stdout, default=repr)
"""


#: Runs command lines, one after the other.
_COMMANDS = """
import os, sys
from own_ports import ports_of_children
from zfast.cli.app import run
from zfast.diagnosis import listening
listening.listening_ports = ports_of_children(os.getppid())
for line in sys.argv[1:]:
    run(line.split())
"""


def processes_of(pid: int) -> str:
    """What ``ps`` shows of a process and its children: their command lines."""
    return subprocess.run(
        ["ps", "-o", "args", "--ppid", str(pid), "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def run_script(tmp_path, prefect_api: str, what: str, secrets: dict[str, str]) -> str:
    """Everything that a run writes, and what ``ps`` shows meanwhile."""
    path = tmp_path / "script.py"
    path.write_text(_SCRIPT)
    seen = ""
    with subprocess.Popen(
        [sys.executable, str(path), what],
        env={**os.environ, **secrets, "PREFECT_API_URL": prefect_api},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            seen += processes_of(process.pid)
            try:
                out, error = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                continue
    assert process.returncode == 0, error
    assert json.loads(out)
    return out + error + seen


needs_ps = pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps here")


@needs_ps
def test_secrets_in_variables_show_nowhere_in_a_whole_run(tmp_path, prefect_api):
    folder = KeyFolder(tmp_path / "keys")
    server, client = KeyPair.generate("server"), KeyPair.generate("client")
    folder.authorize(client.public, "client", Role.OWNER, "prod")
    secrets = {
        "ZFAST_SERVER_SECRET_KEY": server.secret.reveal().decode(),
        "ZFAST_CLIENT_SECRET_KEY": client.secret.reveal().decode(),
        "ZFAST_TOKEN": TOKEN,
    }
    more = {"ZFAST_KEYS": str(folder.path), "ZFAST_SERVER_PUBLIC_KEYS": server.public.z85}
    written = run_script(tmp_path, prefect_api, "channel", {**secrets, **more})
    assert "refused our key" in written  # it did go wrong in between
    assert "is not the server we trust" in written
    assert "admitted" in written
    for name, secret in secrets.items():
        assert secret not in written, name
        assert secret[:20] not in written, name


@needs_ps
def test_workers_get_no_secret_even_when_nobody_asked_for_it(tmp_path, prefect_api):
    """A runner of local workers reads no security settings; their variables stay behind all the
    same."""
    secrets = {"ZFAST_TOKEN": TOKEN, "ZFAST_SERVER_SECRET_KEY": "planted-secret-key"}
    written = run_script(tmp_path, prefect_api, "runner", secrets)
    for name, secret in secrets.items():
        assert secret not in written, name


def test_the_commands_of_keys_show_no_secret(tmp_path):
    folder = str(tmp_path / "keys")
    written = ""

    def zfast(*commands: str) -> None:
        nonlocal written
        done = subprocess.run(
            [sys.executable, "-c", _COMMANDS, *commands],
            env={**importing_tests(), "ZFAST_KEYS": folder},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        written += done.stdout + done.stderr

    zfast(
        "keys new server",
        "keys new server",  # is there already
        "keys new client --json",
        "keys authorize " + folder + "/default/client.pub --role Worker",
        "keys trust " + folder + "/default/server.pub",
        "keys list",
        "keys list --json",
        "keys show client",
        "keys rotate --json",
        "keys rotate client",
        "token check --key client",
        "keys revoke client",
        "doctor",
    )
    secrets = []
    for path in (tmp_path / "keys").rglob("*.key"):
        secrets += [
            line.split('"')[1] for line in path.read_text().splitlines() if "secret =" in line
        ]
    assert len(secrets) == 4
    # One that is broken, and one that somebody takes for a public key.
    path = tmp_path / "keys/default/server.key"
    text = path.read_text()
    path.write_text(text.replace('secret = "', 'secret = "x'))
    zfast("keys list", "doctor")
    path.write_text(text)
    zfast(f"keys authorize {path} --role Worker", f"keys trust {path}", f"keys revoke {path}")
    assert "holds no" in written
    for secret in secrets:
        assert secret not in written
        assert secret[:16] not in written
