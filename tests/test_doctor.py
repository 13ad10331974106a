"""What the doctor finds, each from a real cause, and what it tells to do."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jwt
import pytest
import zmq

import zfast
from foremen import importing_tests
from own_ports import ports_of_children
from zfast import Channel
from zfast.addresses import InsecureEndpointWarning
from zfast.context import process_context
from zfast.diagnosis import listening
from zfast.diagnosis.clock import check_clock
from zfast.diagnosis.finding import Level
from zfast.diagnosis.keys import check_keys
from zfast.diagnosis.libraries import check_libraries
from zfast.diagnosis.listening import check_listening
from zfast.diagnosis.memory import check_memory
from zfast.diagnosis.shared_memory import check_huge_pages
from zfast.diagnosis.stranger import check_endpoint
from zfast.diagnosis.tokens import check_token
from zfast.diagnosis.versions import check_versions
from zfast.errors import ConfigError
from zfast.security.curve_keys import KeyPair
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity
from zfast.security.settings import SecuritySettings

SERVER = KeyPair.generate("server")
CLIENT = KeyPair.generate("client")


@pytest.fixture(autouse=True)
def own_ports(monkeypatch):
    """Processes of tests that run beside these may end while they are greeted."""
    monkeypatch.setattr(listening, "listening_ports", ports_of_children(os.getpid()))


def only(findings, level=Level.PROBLEM):
    """The one finding of a level."""
    found = list(findings)
    chosen = [finding for finding in found if finding.level is level]
    assert len(chosen) == 1, found
    return chosen[0]


def run_check(call: str, before: str = "", **environment: str) -> list[dict[str, str]]:
    """A check in a process of its own, so that limits are that one's."""
    script = (
        f"import json, resource, sys\n{before}\n"
        "from zfast.diagnosis.shared_memory import *\nfrom zfast.diagnosis.memory import *\n"
        "from zfast.diagnosis.libraries import *\n"
        f"print(json.dumps([finding.to_dict() for finding in {call}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- what is installed ----------------------------------------------------------------------


def test_versions_that_do_not_fit_and_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    info = tmp_path / "probed-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: probed\nVersion: 1.0\nProvides-Extra: more\n"
        "Requires-Dist: numpy<1\nRequires-Dist: no-such-package>=2\n"
        "Requires-Dist: also-missing; extra == 'more'\n"
        "Requires-Dist: pyzmq<2; extra == 'more'\n"
        "Requires-Dist: msgspec<0.1; python_version < '3'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    wrong = [f for f in check_versions("probed") if f.level is Level.PROBLEM]
    assert [finding.hint for finding in wrong] == [
        "pip install 'numpy<1'",
        "pip install 'no-such-package>=2'",
        "pip install 'pyzmq<2'",
    ]
    assert "not installed" in only(check_versions("no-such-distribution")).message
    assert [finding.level for finding in check_versions()] == [Level.OK]


def test_a_core_that_is_not_there_is_a_problem(tmp_path):
    copy = tmp_path / "zfast"
    copy.mkdir()
    for entry in Path(zfast.__file__).parent.iterdir():
        if not entry.name.startswith("_core."):
            copy.joinpath(entry.name).symlink_to(entry)
    before = f"sys.path.insert(0, {str(tmp_path)!r})"
    [finding] = run_check("check_libraries()", before)
    assert finding["level"] == "problem"
    assert "compiled core is not there" in finding["message"]
    assert only(check_libraries(), Level.OK)


def test_a_libzmq_without_curve_is_a_problem(monkeypatch):
    # The only failure here without its cause: no such libzmq is at hand.
    monkeypatch.setattr(zmq, "has", lambda what: what != "curve")
    assert "--only-binary" in only(check_libraries()).hint


# ---- keys, tokens, clock ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    made.new("prod", "server")
    client = made.new("prod", "client")
    made.authorize(client.pair.public, "worker-1", Role.WORKER, "prod")
    return made


def keys_of(folder: KeyFolder, **more):
    return check_keys(SecuritySettings(keys=folder.path, environment="prod", **more))


def test_a_good_key_folder_is_good(folder):
    assert [finding.level for finding in keys_of(folder)] == [Level.OK]
    nothing = check_keys(SecuritySettings(keys=folder.path.parent / "none"))
    assert "zfast keys new server" in only(nothing, Level.NOTE).hint


@pytest.mark.parametrize(
    ("path", "mode", "hint"),
    [
        ("", 0o755, "chmod 700"),
        ("prod", 0o750, None),
        ("prod/server.key", 0o644, "chmod 600"),
        ("authorized/worker-1.pub", 0o666, "chmod go-w"),
        ("policy.toml", 0o664, "chmod go-w"),
    ],
)
def test_what_is_open_to_others_is_a_problem(folder, path, mode, hint):
    folder.path.joinpath(path).chmod(mode)
    found = [f for f in keys_of(folder) if f.level is Level.PROBLEM]
    assert found
    assert all((hint or "chmod 700") in finding.hint for finding in found)


def test_every_broken_file_is_named_and_not_the_first_alone(folder):
    folder.path.joinpath("prod/server.key").write_text("secret = 1")
    folder.path.joinpath("policy.toml").write_text("[[rule]]\nrole = 'King'\n")
    folder.path.joinpath("authorized/bad.pub").write_text("public = 'x'")
    text = " ".join(f.message for f in keys_of(folder) if f.level is Level.PROBLEM)
    assert "server.key" in text
    assert "policy.toml" in text
    assert "bad.pub" in text


def test_what_is_wrong_with_servers_that_are_trusted_is_found_where_there_are_no_own_keys(folder):
    folder.trust("staging", CLIENT.public, "far").chmod(0o666)
    assert "staging/trusted/far.pub" in only(keys_of(folder)).message


def test_a_revoked_key_of_our_own_a_grace_window_and_a_key_without_a_role(folder):
    folder.rotate("prod", "server", 7200)
    assert "2.0 h more" in only(keys_of(folder), Level.NOTE).message
    folder.authorize(CLIENT.public, "nobody", None, None)
    notes = [f.message for f in keys_of(folder) if f.level is Level.NOTE]
    assert any("nobody is authorized and has no role" in note for note in notes)
    folder.revoke(folder.own_keys("prod", "client")[0].pair.public, "worker-1")
    assert "prod/client is revoked" in only(keys_of(folder)).message


def test_mounted_files_are_looked_at_too(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not a key")
    secret.chmod(0o600)
    more = {"server_secret_key_file": secret, "policy_file": tmp_path / "none.toml"}
    found = [f.message for f in keys_of(folder, **more) if f.level is Level.PROBLEM]
    assert any("no secret CURVE key" in message for message in found)
    assert any("there is no policy" in message for message in found)
    assert not any("not a key" in message for message in found)


@pytest.mark.parametrize(
    ("claims", "level", "message"),
    [
        ({"exp": -5}, Level.PROBLEM, "has ended"),
        ({}, Level.PROBLEM, "holds no token"),
        ({"exp": 20}, Level.NOTE, "ends in"),
        ({"exp": 600}, Level.OK, "is good for"),
    ],
)
def test_a_token_is_looked_at(tmp_path, claims, level, message):
    path = tmp_path / "token"
    claims = {name: time.time() + value for name, value in claims.items()}
    path.write_text(jwt.encode(claims, "k" * 32))
    path.chmod(0o600)
    assert message in only(check_token(SecuritySettings(token_file=path)), level).message
    path.chmod(0o644)
    assert "chmod 600" in only(check_token(SecuritySettings(token_file=path))).hint
    assert list(check_token(SecuritySettings())) == []


def test_a_clock_that_was_set_back_is_seen_by_files_from_the_future(folder):
    later = time.time() + 3600
    os.utime(folder.path / "policy.toml", (later, later))
    finding = only(check_clock(folder.path))
    assert "policy.toml was written 3" in finding.message
    assert "tokens end by it" in finding.hint


# ---- endpoints -------------------------------------------------------------------------------


def test_a_guarded_endpoint_refuses_a_stranger():
    security = ServerSecurity.from_keys(SERVER, [(CLIENT.public, Role.OWNER)])
    with Channel.bind("tcp://127.0.0.1:*", security=security) as rx:
        assert (
            "refuses an unknown"
            in only(check_endpoint(rx.endpoint, [CLIENT.public, SERVER.public]), Level.OK).message
        )
        assert (
            "proves none" in only(check_endpoint(rx.endpoint, [CLIENT.public]), Level.NOTE).message
        )
        assert "no server key" in only(check_endpoint(rx.endpoint, []), Level.NOTE).message
        rx.abort()


def test_an_endpoint_without_keys_is_a_problem():
    with pytest.warns(InsecureEndpointWarning):
        rx = Channel.bind("tcp://127.0.0.1:*", insecure=True)
    assert "announces NULL" in only(check_endpoint(rx.endpoint, [])).message
    rx.abort()


def test_curve_without_a_handler_lets_everyone_in_and_is_a_problem():
    context = zmq.Context()  # where there is no ZAP handler
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_secretkey = True, SERVER.secret.reveal()
    port = router.bind_to_random_port("tcp://127.0.0.1")
    url = f"tcp://127.0.0.1:{port}"
    try:
        assert "lets an unknown key in" in only(check_endpoint(url, [SERVER.public])).message
        guest = only(check_endpoint(url, [SERVER.public], takes_tokens=True), Level.NOTE)
        assert "right if it takes tokens" in guest.message
    finally:
        router.close(0)
        context.term()


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n" + b"x" * 64, b""])
def test_a_port_that_is_something_else_is_a_problem(says):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert "speaks no ZeroMQ" in only(check_endpoint(url, [])).message
        thread.join()
    assert "cannot be reached" in only(check_endpoint(url, [])).message
    with pytest.raises(ConfigError):
        list(check_endpoint("ipc://relative", []))


_SERVER = """
import sys, warnings
from zfast import Channel
from zfast.security.server_security import ServerSecurity
warnings.simplefilter("ignore")
insecure = sys.argv[1] == "insecure"
security = None if insecure else ServerSecurity.load("prod")
rx = Channel.bind(sys.argv[2], insecure=insecure, security=security)
print(rx.endpoint, flush=True)
sys.stdin.read()
rx.abort()
"""


@pytest.mark.parametrize(
    ("how", "url", "level", "message"),
    [
        ("insecure", "tcp://127.0.0.1:*", Level.NOTE, "every user of this host"),
        ("keys", "tcp://127.0.0.1:*", Level.OK, "for this host alone"),
        ("keys", "tcp://0.0.0.0:*", Level.OK, "for other hosts"),
    ],
)
def test_ports_of_other_processes_are_found(folder, how, url, level, message):
    server = folder.own_keys("prod", "server")[0].pair.public
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, how, url],
        env={**os.environ, "ZFAST_KEYS": str(folder.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip().rpartition(":")[2]
        found = [
            f for f in check_listening([server], takes_tokens=False) if f":{port}" in f.message
        ]
        finding = only(found, level)
        assert f"process {process.pid}" in finding.message
        assert message in finding.message
        process.stdin.close()


def test_an_open_port_that_nothing_guards_is_a_problem():
    """Which zfast does not open: somebody did, with the same libraries."""
    script = (
        "import zmq, sys, zfast._core; s = zmq.Context().socket(zmq.ROUTER); s.linger = 0\n"
        "print(s.bind_to_random_port('tcp://0.0.0.0'), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        found = [f for f in check_listening([], takes_tokens=False) if f":{port}" in f.message]
        assert "for other hosts" in only(found).message
        process.stdin.close()


# ---- memory ----------------------------------------------------------------------------------


def test_shared_memory_that_cannot_be_had_is_slow():
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    [finding] = run_check("check_shared_memory()", limit)
    assert finding["level"] == "slow"
    assert "File too large" in finding["message"]
    for backing in ("shm", "disk"):
        [finding] = run_check("check_shared_memory()", ZFAST_ARENA_BACKING=backing)
        assert finding["level"] == "slow"
        assert "unset ZFAST_ARENA_BACKING" in finding["hint"]
    [finding] = run_check("check_shared_memory()", ZFAST_ARENA_NBYTES="much")
    assert finding["level"] == "problem"
    [finding] = run_check("check_shared_memory()")
    assert finding["level"] == "ok"


def test_huge_pages_that_are_off_are_a_note(tmp_path):
    setting = tmp_path / "shmem_enabled"
    setting.write_text("always within_size advise [never] deny force\n")
    assert "advise" in only(check_huge_pages(setting), Level.NOTE).hint
    setting.write_text("always within_size [advise] never deny force\n")
    assert only(check_huge_pages(setting), Level.OK)
    assert list(check_huge_pages(tmp_path / "none")) == []


def test_little_memory_and_few_descriptors(tmp_path):
    tmp_path.joinpath("meminfo").write_text(
        "MemTotal: 8388608 kB\nMemFree: 1024 kB\nMemAvailable: 524288 kB\n"
    )
    tmp_path.joinpath("self").mkdir()
    tmp_path.joinpath("self/cgroup").write_text("0::/job\n")
    group = tmp_path / "cgroup/job"
    group.mkdir(parents=True)
    group.joinpath("memory.max").write_text(f"{2 << 30}\n")
    group.joinpath("memory.current").write_text(f"{1 << 30}\n")
    finding = only(check_memory(str(tmp_path), str(tmp_path / "cgroup")), Level.SLOW)
    assert "0.5 of 2.0 GiB are free in this cgroup" in finding.message
    soft = "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))"
    [found] = run_check("check_descriptors()", soft)
    assert (found["level"], found["hint"]) == ("problem", "ulimit -n 4096")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1024


# ---- the command ---------------------------------------------------------------------------------


_DOCTOR = """
import os
from own_ports import ports_of_children
from zfast.cli import main
from zfast.diagnosis import listening
listening.listening_ports = ports_of_children(os.getppid())
main()
"""


def zfast_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _DOCTOR, "doctor", *arguments],
        env={**importing_tests(), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_exits_0_when_all_is_well_and_3_with_problems(folder):
    good = zfast_doctor("--folder", str(folder.path), "-e", "prod", "--json")
    assert good.returncode == 0, good.stdout + good.stderr
    checks = {finding["check"] for finding in json.loads(good.stdout)}
    assert {"versions", "libzmq", "keys", "clock", "ports", "memory"} <= checks
    folder.path.joinpath("prod/server.key").chmod(0o644)
    bad = zfast_doctor("tcp://127.0.0.1:1", ZFAST_KEYS=str(folder.path))
    assert bad.returncode == 3
    assert "✗ keys" in bad.stdout
    assert "chmod 600" in bad.stdout
    assert "✗ endpoint" in bad.stdout


@pytest.mark.parametrize("url", ["ipc:///x", "inproc://x", "tcp://host:*", "tcp://host", "host"])
def test_what_is_no_endpoint_of_a_server_is_told_before_anything_else(folder, url):
    done = zfast_doctor("tcp://127.0.0.1:1", url, "--folder", str(folder.path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"zfast: {url!r} ")


def test_the_doctor_shows_no_secret(folder):
    secret = folder.own_keys("prod", "server")[0].pair.secret.reveal().decode()
    done = zfast_doctor(ZFAST_KEYS=str(folder.path), ZFAST_CLIENT_SECRET_KEY=secret)
    assert "ZFAST_CLIENT_SECRET_KEY held a secret" in done.stdout
    assert secret not in done.stdout + done.stderr


def test_the_context_of_this_process_is_left_as_it_was():
    before = process_context()
    list(check_listening([SERVER.public], takes_tokens=False))
    assert process_context() is before
