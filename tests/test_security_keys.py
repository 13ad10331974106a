"""Keys in files, variables and secrets: where they may be, who may read them, what shows them."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import pickle
import shlex
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from other_user import closed_to_its_owner, not_as_root
from security_peers import Peer, Records, serving
from zfast.errors import ConfigError
from zfast.events.filters import current_environment
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair, PublicKey, SecretKey, fingerprint
from zfast.security.held_secrets import SECRET_VARIABLES
from zfast.security.key_files import public_text, read_public_key, write_pair
from zfast.security.key_folder import KeyFolder
from zfast.security.policy import KeyFacts, Policy
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity
from zfast.security.settings import SecuritySettings, load_settings
from zfast.security.sources import SettingsSource


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFolder:
    monkeypatch.setenv("ZFAST_KEYS", str(tmp_path / "keys"))
    monkeypatch.setattr("zfast.security.held_secrets._taken", {})
    return KeyFolder(tmp_path / "keys")


def zfast(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'zfast'; from zfast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# ---- a key -------------------------------------------------------------------------------


def test_a_fingerprint_is_the_thumbprint_of_rfc_7638():
    # RFC 8037's appendix has no vector for X25519: this one was computed by hand from RFC 7638.
    from base64 import urlsafe_b64encode
    from hashlib import sha256

    from zmq.utils import z85

    key = bytes(range(32))
    x = urlsafe_b64encode(key).rstrip(b"=").decode()
    jwk = '{"crv":"X25519","kty":"OKP","x":"' + x + '"}'
    expected = urlsafe_b64encode(sha256(jwk.encode()).digest()).rstrip(b"=").decode()
    assert fingerprint(z85.encode(key).decode()) == expected


@given(
    st.text(max_size=50)
    | st.text("0123456789abcdefABCDEF.-:+=^!/*?&<>()[]{}@%$#", min_size=40, max_size=40)
)
def test_whatever_is_no_key_is_an_error_that_does_not_show_it(text):
    for kind in (PublicKey, SecretKey):
        shown = ""
        try:
            kind(text)
        except ConfigError as error:
            shown = "".join(traceback.format_exception(error))
        assert len(text) < 8 or text not in shown


def test_a_secret_shows_itself_nowhere(caplog):
    pair = KeyPair.generate("server")
    secret = pair.secret.reveal().decode()
    shown = [repr(pair), str(pair), repr(pair.secret), f"{pair.secret}", repr([pair])]
    security = ServerSecurity.from_keys(pair, [])
    client = ClientSecurity(pair, [pair.public])
    shown += [repr(vars(security)), repr(vars(client)), repr(security), repr(client)]
    assert not any(secret in text for text in shown)
    with pytest.raises(ConfigError):
        pickle.dumps(pair.secret)
    with pytest.raises(ConfigError):
        copy.deepcopy(pair)


@pytest.mark.parametrize(
    "hold", [lambda s: s, SecretStr, lambda s: lambda: s, lambda s: lambda: SecretStr(s)]
)
def test_a_secret_may_be_held_in_what_prefect_blocks_have(hold):
    pair = KeyPair.generate()
    source = hold(pair.secret.reveal().decode())
    assert KeyPair.from_secret(source).public.z85 == pair.public.z85


def test_a_secret_is_fetched_when_it_is_needed_and_not_before():
    pair = KeyPair.generate()
    fetched = []

    def fetch() -> str:
        fetched.append(1)
        return pair.secret.reveal().decode()

    client = ClientSecurity(fetch, [pair.public])
    assert fetched == []
    assert client.pair.public.z85 == client.pair.public.z85 == pair.public.z85
    assert fetched == [1]


# ---- the folder --------------------------------------------------------------------------


def test_a_new_folder_is_private_from_the_start(folder):
    old = os.umask(0)
    try:
        folder.new("prod", "server")
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.path.rglob("*")}
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert modes["prod"] == 0o700
    assert modes["server.key"] == 0o600
    assert modes["server.pub"] == 0o644
    secret = folder.own_keys("prod", "server")[0].pair.secret.reveal().decode()
    assert secret not in (folder.path / "prod" / "server.pub").read_text()


@pytest.mark.parametrize(
    ("what", "mode", "hint"),
    [
        (".", 0o755, "chmod 700"),
        (".", 0o770, "chmod 700"),
        ("prod", 0o711, "chmod 700"),
        ("prod/server.key", 0o640, "chmod 600"),
        ("prod/server.key", 0o604, "chmod 600"),
        ("policy.toml", 0o664, "chmod go-w"),
        ("authorized/w.pub", 0o666, "chmod go-w"),
    ],
)
def test_what_is_open_to_others_is_refused_with_the_command_that_mends_it(folder, what, mode, hint):
    folder.new("prod", "server")
    folder.authorize(KeyPair.generate().public, "w", Role.WORKER, "prod")
    ServerSecurity.load("prod")
    (folder.path / what).chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}") as caught:
        ServerSecurity.load("prod")
    assert hint in str(caught.value)


@pytest.mark.parametrize("what", [".", "authorized", "revoked", "prod", "prod/trusted"])
@pytest.mark.parametrize("wrong", ["mode", "owner"])
def test_a_folder_of_public_keys_that_others_can_write_to_is_refused(
    folder, tmp_path, monkeypatch, what, wrong
):
    """Also where the secret keys come from elsewhere."""
    server, client = folder.new("prod", "server"), folder.new("prod", "client")
    folder.authorize(client.pair.public, "client", Role.WORKER, "prod")
    folder.revoke(KeyPair.generate("gone").public, "gone")
    folder.trust("prod", server.pair.public, "server")
    for own in (server, client):
        path = tmp_path / own.name
        path.touch(mode=0o600)
        path.write_bytes(own.pair.secret.reveal())
        monkeypatch.setenv(f"ZFAST_{own.name.upper()}_SECRET_KEY_FILE", str(path))
    for name in (".", "authorized", "revoked", "prod", "prod/trusted"):
        (folder.path / name).chmod(0o755)  # as configuration management makes them
    ServerSecurity.load("prod")
    assert ClientSecurity.load("prod").servers[0].z85 == server.pair.public.z85
    if wrong == "mode":
        (folder.path / what).chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(folder.path / what, 65534, 65534)
    else:
        pytest.skip("only root can be another user")
    load = ClientSecurity.load if what.startswith("prod") else ServerSecurity.load
    with pytest.raises(ConfigError, match=r"write to it: mode 0777|to user 65534"):
        load("prod")


def test_a_folder_of_revoked_keys_that_cannot_be_listed_is_not_an_empty_one(short_folder):
    with contextlib.ExitStack() as stack:
        # Not in tmp_path: the folders above that are for one user alone.
        folder = KeyFolder(short_folder / "keys")
        folder.new("prod", "server")
        good, gone = folder.new("prod", "client").pair, folder.new("prod", "gone").pair
        folder.authorize(good.public, "client", Role.WORKER, "prod")
        folder.authorize(gone.public, "gone", Role.WORKER, "prod")
        folder.revoke(gone.public, "gone")
        (folder.path / "authorized" / "gone.pub").write_text(f'public = "{gone.public.z85}"\n')
        ServerSecurity.load("prod", folder=folder.path)  # and imports what that needs
        stack.enter_context(not_as_root(short_folder))
        security = ServerSecurity.load("prod", folder=folder.path)
        records = stack.enter_context(Records())
        service = stack.enter_context(serving(security))
        revoked = folder.path / "revoked"
        stack.callback(revoked.chmod, 0o700)
        revoked.chmod(0)
        told = records.wait_for("reload failed", "not readable")
        assert f"{revoked} cannot be read: Permission denied" in str(told["detail"])
        with pytest.raises(ConfigError, match="cannot be read") as refusal:
            ServerSecurity.load("prod", folder=folder.path)
        assert f"belong to user {os.geteuid()} and have mode 0700" in str(refusal.value)
        for _ in range(2):
            with pytest.raises(ConfigError, match="cannot be read"):
                security.reload()
        with Peer(service.endpoint, gone, security.public_keys[0]) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        with Peer(service.endpoint, good, security.public_keys[0]) as peer:
            assert peer.ask(b"claim") == [b"yes", b"client"]
        assert sum(text.startswith("reload failed") for text in records.texts) == 1


@pytest.mark.parametrize("closed", ["prod", "."])
def test_a_folder_of_own_keys_that_cannot_be_listed_is_not_an_empty_one(short_folder, closed):
    folder = KeyFolder(short_folder / "keys")
    folder.new("prod", "server")
    with closed_to_its_owner(folder.path / closed, short_folder):
        for look in (
            folder.list_own,
            partial(folder.own_keys, "prod", "server"),
            partial(folder.new, "prod", "client"),
            partial(folder.rotate, "prod", "server", 0),
        ):
            with pytest.raises(ConfigError, match="Permission denied"):
                look()


@pytest.mark.parametrize("name", ["revoked", "authorized"])
def test_a_folder_that_is_a_link_to_nowhere_is_not_an_empty_one(folder, name):
    folder.new("prod", "server")
    (folder.path / name).symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        ServerSecurity.load("prod")


def test_a_link_to_nowhere_hides_no_change_beside_it(folder):
    folder.new("prod", "server")
    pair = folder.new("prod", "client").pair
    folder.authorize(pair.public, "client", Role.WORKER, "prod")
    # An editor makes one beside a file that is not saved; many, wherever the system lists them.
    for number in range(30):
        (folder.path / f".#{number}policy.toml").symlink_to("somebody@host.1234")
    security = ServerSecurity.load("prod")
    with serving(security) as service:
        with Peer(service.endpoint, pair, security.public_keys[0]) as peer:
            assert peer.ask(b"claim") == [b"yes", b"client"]
            folder.revoke(pair.public, "client")
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)


def test_a_key_that_is_missing_says_how_to_make_it(folder):
    with pytest.raises(ConfigError, match="zfast keys new server"):
        ServerSecurity.load("prod")
    folder.new("staging", "server")
    with pytest.raises(ConfigError, match="zfast keys new server --environment prod"):
        ServerSecurity.load("prod")
    with pytest.raises(ConfigError, match="zfast keys new client --environment prod"):
        ClientSecurity.load("prod")
    with pytest.raises(ConfigError, match="new client --name worker-1 --environment prod"):
        ClientSecurity.load("prod", name="worker-1")
    folder.new("prod", "client")
    with pytest.raises(ConfigError, match="zfast keys trust"):
        ClientSecurity.load("prod")


@pytest.mark.parametrize("text", ["", "name = 1", 'public = "x"\nsecret = "y"', "\0\xff"])
def test_a_broken_key_file_says_so_and_does_not_show_itself(folder, text):
    folder.new("prod", "server")
    path = folder.path / "prod" / "server.key"
    path.write_text(text + "# very-secret-words")
    with pytest.raises(ConfigError, match="holds no key pair") as caught:
        folder.own_keys("prod", "server")
    assert "very-secret" not in "".join(traceback.format_exception(caught.value))


def test_a_public_key_that_is_not_that_of_the_secret_is_refused(folder):
    own = folder.new("prod", "server")
    path = folder.path / "prod" / "server.key"
    other = KeyPair.generate().public.z85
    path.write_text(path.read_text().replace(own.pair.public.z85, other))
    with pytest.raises(ConfigError, match="is not that of its secret key") as caught:
        folder.own_keys("prod", "server")
    # As tools show it that collect the variables of every frame.
    whole = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert own.pair.secret.reveal().decode() not in "".join(whole.format())


def test_a_public_key_in_no_known_text_is_an_error_like_any_other(folder):
    folder.new("prod", "server")
    (folder.path / "authorized").mkdir(mode=0o700)
    (folder.path / "authorized" / "x.pub").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"x\.pub holds no public key"):
        ServerSecurity.load("prod")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\nb", 'a"b', "x" * 65])
def test_a_name_that_would_be_a_path_or_a_rule_is_refused(folder, name):
    with pytest.raises(ConfigError, match="is no name for"):
        folder.new(name, "server")
    with pytest.raises(ConfigError, match="is no name for"):
        folder.authorize(KeyPair.generate().public, name, None, None)


def test_the_name_of_a_pair_before_a_rotation_is_no_other_ones(folder):
    folder.new("prod", "server")
    with pytest.raises(ConfigError, match="is no name for a key"):
        folder.new("prod", "server.previous")
    folder.rotate("prod", "server", 60)
    with pytest.raises(ConfigError, match="is no name for a key"):
        folder.rotate("prod", "server.previous", 60)
    assert len(folder.own_keys("prod", "server")) == 2


@pytest.mark.parametrize("grace_h", [math.inf, math.nan, 1e15, 87_601, -1])
def test_a_grace_window_without_end_is_refused_before_anything_is_written(folder, grace_h):
    own = folder.new("prod", "server")
    with pytest.raises(ConfigError, match="ten years"):
        folder.rotate("prod", "server", grace_h * 3600)
    assert [kept.pair.public for kept in folder.list_own()] == [own.pair.public]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{folder}.pub", "is not a file"),
        ("x" * 300 + ".pub", "File name too long"),
        ("{folder}/policy.toml/x.pub", "Not a directory"),
    ],
)
def test_what_cannot_be_a_key_file_says_so_and_stays_open_nowhere(folder, what, message):
    folder.new("prod", "server")
    (folder.path / "policy.toml").touch()
    Path(f"{folder.path}.pub").mkdir()
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=message):
        folder.find(what.format(folder=folder.path))
    assert len(os.listdir("/proc/self/fd")) == n_open


@pytest.mark.parametrize("path", ["file", "file/below", "nowhere", "x" * 300])
def test_a_key_folder_that_cannot_be_made_says_so(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("none")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        KeyFolder(tmp_path / path).new("prod", "server")


# ---- what a key calls itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../outside", 'x\\"\\npublic = \\"y', "a" * 43, "", "/tmp/x", "x\\u0000y"]
)
def test_a_file_of_somebody_elses_may_call_itself_anything(folder, tmp_path, name):
    folder.new("prod", "server")
    key = KeyPair.generate().public
    path = tmp_path / "brought.pub"
    path.write_text(f'name = "{name}"\npublic = "{key.z85}"\n')
    path.chmod(0o644)
    before = set(tmp_path.rglob("*"))
    assert zfast("keys", "authorize", str(path), "--role", "Worker").returncode == 1
    assert zfast("keys", "revoke", str(path)).returncode == 0
    assert list(folder.revoked()) == [key.z85]
    added = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.parent.name for path in added} <= {"revoked", "keys"}


def test_a_key_that_is_called_like_another_ones_fingerprint_has_not_its_role():
    owner, evil = KeyPair.generate("owner"), KeyPair.generate()
    named = PublicKey(evil.public.z85, owner.public.fingerprint)
    access = ServerSecurity.from_keys(
        KeyPair.generate(), [(owner.public, Role.OWNER), (named, Role.VIEWER)]
    ).access
    assert [identity.role for identity in access.identities(evil.public.z85)] == [Role.VIEWER]
    assert [identity.role for identity in access.identities(owner.public.z85)] == [Role.OWNER]


def test_a_name_that_an_earlier_rule_gives_another_role_is_not_authorized(folder):
    folder.new("prod", "server")
    (folder.path / "policy.toml").write_text(
        '[[rule]]\nkey = "admin-*"\nrole = "Owner"\nenvironments = ["prod"]\n'
    )
    key = KeyPair.generate("admin-9").public
    with pytest.raises(ConfigError, match="an earlier rule decides on admin-9"):
        folder.authorize(key, "admin-9", Role.VIEWER, "prod")
    assert folder.authorized() == {}
    assert "Viewer" not in (folder.path / "policy.toml").read_text()
    folder.authorize(key, "guest-9", Role.VIEWER, "prod")
    # A role cannot be changed by a rule that is never reached either.
    with pytest.raises(ConfigError, match="an earlier rule"):
        folder.authorize(key, "guest-9", Role.OWNER, "prod")


@pytest.mark.parametrize("environments", [["prod"], ["*"]])
def test_a_key_gets_no_role_that_was_not_asked_for(folder, environments):
    rules = f'[[rule]]\nkey = "worker-*"\nrole = "Worker"\nenvironments = {environments}\n'
    folder.new("staging", "server")
    (folder.path / "policy.toml").write_text(rules.replace("'", '"'))
    key = KeyPair.generate("worker-1").public
    with pytest.raises(ConfigError, match="would have a role elsewhere too: key worker"):
        folder.authorize(key, "worker-1", Role.WORKER, "staging")
    assert folder.authorized() == {}
    assert "staging" not in (folder.path / "policy.toml").read_text()
    folder.authorize(key, "bob", Role.WORKER, "staging")
    assert list(folder.policy().decide_everywhere(KeyFacts("bob", key.fingerprint))) == ["staging"]


def test_the_rule_of_a_revoked_key_is_not_the_next_ones_who_takes_its_name(folder):
    old, new = KeyPair.generate().public, KeyPair.generate().public
    folder.authorize(old, "worker-1", Role.WORKER, "prod")
    folder.revoke(old, "worker-1")
    with pytest.raises(ConfigError, match="would have a role elsewhere too"):
        folder.authorize(new, "worker-1", Role.VIEWER, "staging")
    folder.authorize(new, "worker-1", Role.WORKER, "prod")  # it was asked for


def test_a_key_may_be_given_roles_in_one_environment_after_the_other(folder):
    folder.new("prod", "server")
    (folder.path / "policy.toml").write_text(
        '[[rule]]\nkey = "worker-*"\nrole = "Worker"\nenvironments = ["prod"]\n'
    )
    key = KeyPair.generate().public
    for _ in range(2):
        folder.authorize(key, "worker-1", Role.WORKER, "prod")
        folder.authorize(key, "worker-1", Role.VIEWER, "staging")
    decisions = folder.policy().decide_everywhere(KeyFacts("worker-1", key.fingerprint))
    roles = {name: decision.role for name, decision in decisions.items()}
    assert roles == {"prod": Role.WORKER, "staging": Role.VIEWER}


def test_a_revoked_key_is_no_longer_authorized_and_cannot_be_again(folder):
    pair = KeyPair.generate("w")
    folder.authorize(pair.public, "w", Role.WORKER, "prod")
    folder.revoke(folder.find("w"), "w")
    assert folder.authorized() == {}
    assert set(folder.revoked()) == {pair.public.z85}
    with pytest.raises(ConfigError, match="is revoked"):
        folder.authorize(pair.public, "w2", Role.WORKER, "prod")


def test_after_a_rotation_both_pairs_are_there_until_the_old_one_retires(folder):
    old = folder.new("prod", "server")
    new = folder.rotate("prod", "server", 3600)
    public = [own.pair.public.z85 for own in folder.own_keys("prod", "server")]
    assert public == [new.pair.public.z85, old.pair.public.z85]
    assert read_public_key(folder.path / "prod" / "server.pub").z85 == public[0]
    with pytest.raises(ConfigError, match="the key before is still served"):
        folder.rotate("prod", "server", 60)
    newest = folder.rotate("prod", "server", 0)
    assert [own.pair.public.z85 for own in folder.own_keys("prod", "server")] == [
        newest.pair.public.z85
    ]


# ---- from the folder to the socket ---------------------------------------------------------


def test_keys_made_by_the_command_line_let_two_processes_speak_and_a_revocation_ends_it(folder):
    assert zfast("keys", "new", "server", "-e", "prod").returncode == 0
    assert zfast("keys", "new", "client", "--name", "worker-1", "-e", "prod").returncode == 0
    public = str(folder.path / "prod" / "worker-1.pub")
    done = zfast("keys", "authorize", public, "--role", "Worker", "-e", "prod", "--json")
    assert json.loads(done.stdout)["name"] == "worker-1"
    client = ClientSecurity.load("prod", name="worker-1")
    with serving(ServerSecurity.load("prod")) as service:
        with Peer(service.endpoint, client.pair, client.servers[0]) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker-1"]
            assert peer.ask(b"submit") == [b"no"]
            assert zfast("keys", "revoke", "worker-1").returncode == 0
            assert peer.wait_for(zmq.EVENT_DISCONNECTED)
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_a_rotation_by_the_command_line_is_taken_up_by_a_running_server(folder):
    folder.new("prod", "server")
    pair = folder.new("prod", "client").pair
    folder.authorize(pair.public, "client", Role.WORKER, "prod")
    with serving(ServerSecurity.load("prod")) as service:
        before = ClientSecurity.load("prod")
        assert zfast("keys", "rotate", "-e", "prod").returncode == 0
        after = ClientSecurity.load("prod")
        assert len(after.servers) == 2
        for server in (before.servers[0], after.servers[0]):
            with Peer(service.endpoint, pair, server) as peer:
                assert peer.ask(b"claim", timeout_s=20) == [b"yes", b"client"]


def test_what_the_rotation_of_a_clients_key_says_to_do_lets_the_new_one_in(folder, monkeypatch):
    folder.new("prod", "server")
    old = folder.new("prod", "worker-1").pair
    while not old.public.fingerprint.startswith("-"):  # the hardest to type
        old = KeyPair.generate("worker-1")
    write_pair(folder.path / "prod" / "worker-1.key", old, None)
    folder.authorize(old.public, "worker-1", Role.WORKER, "prod")
    said = zfast("keys", "rotate", "worker-1", "-e", "prod").stdout
    monkeypatch.chdir(folder.path / "prod")
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("zfast ")]
    assert [command[2] for command in commands] == ["revoke", "authorize"]
    for command in commands:
        done = zfast(*command[1:])
        assert done.returncode == 0, done.stderr
    client = ClientSecurity.load("prod", name="worker-1")
    assert client.pair.public.z85 != old.public.z85
    with serving(ServerSecurity.load("prod")) as service:
        with Peer(service.endpoint, client.pair, client.servers[0]) as peer:
            assert peer.ask(b"claim") == [b"yes", b"worker-1"]
        with Peer(service.endpoint, old, client.servers[0]) as peer:
            assert peer.wait_for(zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_mounted_files_are_enough(tmp_path, folder, monkeypatch):
    server, client = KeyPair.generate("server"), KeyPair.generate("pod")
    mounted = tmp_path / "mounted"
    (mounted / "authorized").mkdir(parents=True, mode=0o755)
    for name, pair in (("server", server), ("client", client)):
        path = mounted / name
        path.write_bytes(pair.secret.reveal() + b"\n")
        path.chmod(0o400)
        monkeypatch.setenv(f"ZFAST_{name.upper()}_SECRET_KEY_FILE", str(path))
    (mounted / "authorized" / "pod.pub").write_text(f'public = "{client.public.z85}"\n')
    (mounted / "policy.toml").write_text(
        '[[rule]]\nkey = "pod"\nrole = "Worker"\nenvironments = ["prod"]\n'
    )
    monkeypatch.setenv("ZFAST_AUTHORIZED_FOLDER", str(mounted / "authorized"))
    monkeypatch.setenv("ZFAST_POLICY_FILE", str(mounted / "policy.toml"))
    monkeypatch.setenv("ZFAST_SERVER_PUBLIC_KEYS", server.public.z85)
    monkeypatch.setenv("ZFAST_ENVIRONMENT", "prod")
    pod = ClientSecurity.load()
    with serving(ServerSecurity.load()) as service:
        with Peer(service.endpoint, pod.pair, pod.servers[0]) as peer:
            assert peer.ask(b"claim") == [b"yes", b"pod"]
    (mounted / "client").chmod(0o444)
    with pytest.raises(ConfigError, match="defaultMode: 0400"):
        ClientSecurity.load()
    (mounted / "authorized").chmod(0o777)
    with pytest.raises(ConfigError, match="others can write to it"):
        ServerSecurity.load()


def test_a_key_asked_for_by_name_does_not_give_way_to_a_variable(folder, monkeypatch):
    for name in ("client", "worker-1", "server"):
        folder.new("prod", name)
    assert ClientSecurity.load("prod", name="worker-1").pair.public.name == "worker-1"
    fixed = KeyPair.generate()
    monkeypatch.setenv("ZFAST_CLIENT_SECRET_KEY", fixed.secret.reveal().decode())
    with pytest.raises(ConfigError, match="or that of ZFAST_CLIENT_SECRET_KEY\\?"):
        ClientSecurity.load("prod", name="worker-1")
    monkeypatch.setenv("ZFAST_CLIENT_SECRET_KEY_FILE", str(folder.path / "prod/client.key"))
    with pytest.raises(ConfigError, match="or that of ZFAST_CLIENT_SECRET_KEY_FILE\\?"):
        ClientSecurity.load("prod", name="worker-1")
    assert ClientSecurity.load("prod").pair.public.name == "client"


def test_a_mounted_policy_that_is_missing_is_not_an_empty_one(folder, monkeypatch):
    folder.new("prod", "server")
    ServerSecurity.load("prod").close()
    monkeypatch.setenv("ZFAST_POLICY_FILE", str(folder.path / "none.toml"))
    with pytest.raises(ConfigError, match=r"there is no policy .*none\.toml"):
        ServerSecurity.load("prod")
    assert "there is no policy" in zfast("token", "check", "--key", "w").stderr


def test_a_mounted_policy_that_is_taken_away_takes_the_roles_with_it(folder, monkeypatch):
    folder.new("prod", "server")
    policy = folder.path / "mounted.toml"
    policy.write_text('[[rule]]\nkey = "w"\nrole = "Worker"\nenvironments = ["prod"]\n')
    monkeypatch.setenv("ZFAST_POLICY_FILE", str(policy))
    monkeypatch.setenv("ZFAST_ENVIRONMENT", "prod")
    source = SettingsSource(load_settings())
    assert source.load().policy.rules
    before = source.signature()
    policy.unlink()
    assert source.signature() != before
    assert source.load().policy == Policy()
    with pytest.raises(ConfigError, match="there is no policy"):
        SettingsSource(load_settings()).load()


def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch):
    for name in SecuritySettings.model_fields:
        monkeypatch.setenv(f"ZFAST_{name.upper()}", "")
    assert load_settings().model_dump() == SecuritySettings.model_construct().model_dump()
    assert load_settings().environment == current_environment() == "default"


def test_files_that_the_command_made_may_be_mounted(folder, monkeypatch):
    for kind in ("server", "client"):
        assert zfast("keys", "new", kind, "-e", "prod").returncode == 0
    made = folder.path / "prod"
    monkeypatch.setenv("ZFAST_CLIENT_SECRET_KEY_FILE", str(made / "client.key"))
    monkeypatch.setenv("ZFAST_SERVER_PUBLIC_KEYS_FILE", str(made / "server.pub"))
    monkeypatch.setenv("ZFAST_KEYS", str(folder.path / "none"))
    pod = ClientSecurity.load("prod")
    assert pod.pair.public.z85 in (made / "client.pub").read_text()
    assert pod.servers[0].z85 in (made / "server.pub").read_text()


def test_secrets_in_variables_are_used_and_reach_no_child(folder, monkeypatch):
    pair = KeyPair.generate()
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, pair.secret.reveal().decode())
    monkeypatch.setenv("ZFAST_SERVER_PUBLIC_KEYS", pair.public.z85)
    client = ClientSecurity.load()
    assert client.pair.public.z85 == pair.public.z85
    assert client.token() == pair.secret.reveal().decode()
    script = "import os; print([n for n in os.environ if 'SECRET' in n or n == 'ZFAST_TOKEN'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- the command line ----------------------------------------------------------------------


def test_the_command_line_tells_every_role_and_takes_no_files_word_for_a_name(folder, tmp_path):
    folder.authorize(KeyPair.generate().public, "worker-1", Role.WORKER, "prod")
    folder.revoke(folder.find("worker-1"), "worker-1")
    key = KeyPair.generate("worker-1").public
    for name in ("bob", "worker-1"):
        (tmp_path / f"{name}.pub").write_text(public_text(key))
    bob = str(tmp_path / "bob.pub")
    done = zfast("keys", "authorize", bob, "--role", "Viewer", "-e", "staging")
    assert done.returncode
    assert "worker-1 would have a role elsewhere too" in done.stderr
    done = zfast("keys", "authorize", bob)
    assert done.returncode
    assert "calls itself worker-1" in done.stderr
    assert folder.authorized() == {}
    done = zfast("keys", "authorize", str(tmp_path / "worker-1.pub"))
    assert "it is Worker in prod" in done.stdout
    done = zfast("keys", "authorize", bob, "--role", "Viewer", "-e", "staging", "--json")
    assert json.loads(done.stdout)["roles"] == {"prod": "Worker", "staging": "Viewer"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("server", "--name", "front"), "a server's key cannot be called 'front'"),
        (("client", "--name", "server"), "a client's key cannot be called 'server'"),
        (("client", "--name", ""), "'' is no name for a key"),
        (("client", "--folder", ""), "a path may not be empty"),
    ],
)
def test_no_key_is_made_that_nobody_uses_or_by_accident(
    tmp_path, monkeypatch, folder, arguments, message
):
    monkeypatch.chdir(tmp_path)
    done = zfast("keys", "new", *arguments)
    assert done.returncode
    assert message in done.stderr
    assert list(tmp_path.iterdir()) in ([], [folder.path])
    assert not list(folder.path.rglob("*.key"))


def test_token_check_reads_what_a_server_would(tmp_path, folder, monkeypatch):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "pod.pub").write_text(public_text(KeyPair.generate().public))
    folder.authorize(KeyPair.generate().public, "w", Role.WORKER, "prod")
    (folder.path / "policy.toml").write_text(
        '[[rule]]\nkey = "*"\nrole = "Worker"\nenvironments = ["prod"]\n'
    )
    monkeypatch.setenv("ZFAST_AUTHORIZED_FOLDER", str(mounted))
    done = zfast("token", "check", "--key", "pod", "-e", "prod", "--json")
    assert json.loads(done.stdout)["role"] == "Worker", done.stderr
    assert "is no key here" in zfast("token", "check", "--key", "w", "-e", "prod").stderr


def test_a_key_that_begins_with_a_hyphen_is_a_key_and_no_option(folder):
    pair = KeyPair.generate()
    while not (key := pair.public.z85).startswith("-") or key.startswith(("-e", "-h")):
        pair = KeyPair.generate()
    for arguments in (
        ("keys", "authorize", key, "--name", "w", "--role", "Viewer", "-e", "prod"),
        ("keys", "show", key),
        ("token", "check", "--key", key, "-e", "prod"),
        ("keys", "revoke", key),
    ):
        done = zfast(*arguments)
        assert done.returncode == 0, done.stderr
    assert set(folder.revoked()) == {key}
    done = zfast("keys", "authorize", "--rol", "Viewer", str(folder.path / "w.pub"))
    assert done.returncode != 0
    assert "--rol" in done.stderr or "Viewer" in done.stderr


def test_the_command_line_lists_shows_and_explains(folder):
    made = json.loads(zfast("keys", "new", "server", "-e", "prod", "--json").stdout)
    pair = KeyPair.generate()
    key = pair.public.z85
    zfast("keys", "authorize", "--name", "w", "--role", "Viewer", "-e", "prod", "--", key)
    folder.trust("staging", KeyPair.generate().public, "far")
    (folder.path / "backup").mkdir()
    (folder.path / "backup").chmod(0o775)  # no environment
    listed = json.loads(zfast("keys", "list", "--json").stdout)
    assert {(row["kind"], row["name"]) for row in listed} == {
        ("own", "server"),
        ("authorized", "w"),
        ("trusted in staging", "far"),
    }
    assert json.loads(zfast("keys", "show", "-e", "prod", "--json").stdout) == {
        "name": "server",
        "public": made["public"],
        "fingerprint": made["fingerprint"],
    }
    done = zfast("token", "check", "--key", "w", "-e", "prod", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["role"], answer["verbs"]) == (0, "Viewer", ["subscribe"])
    denied = zfast("token", "check", "--key", "w", "-e", "dev")
    assert denied.returncode == 1
    assert "is not for dev" in denied.stdout
    assert "no role in dev" in denied.stderr
    assert "is no key here" in zfast("keys", "revoke", "nobody").stderr
    for done in (zfast("keys", "list"), zfast("keys", "show", "-e", "prod")):
        secret = folder.own_keys("prod", "server")[0].pair.secret.reveal().decode()
        assert secret not in done.stdout + done.stderr
