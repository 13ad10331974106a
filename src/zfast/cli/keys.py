"""``zfast keys``: key pairs of this host, and which keys of others may come in."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from zfast.cli.key_options import Environment, Flag, Folder, KeyName, open_keys
from zfast.cli.path_options import GivenPath
from zfast.errors import ConfigError

if TYPE_CHECKING:
    from zfast.security.key_files import OwnKey

app = App(
    name="keys",
    help="Make, list, authorize, rotate and revoke CURVE keys.",
    help_flags=["--help", "-h"],
    version_flags=[],
    result_action="return_value",
)

RoleName = Literal["Viewer", "Runner", "Developer", "Owner", "Worker"]


@app.command
def new(
    kind: Literal["server", "client"],
    /,
    *,
    name: str | None = None,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
) -> None:
    """Make a key pair for this host.

    Parameters
    ----------
    kind
        A server binds, a client connects.
    name
        What to call a client's, such as worker-1.  [default: the kind]
    environment
        Such as prod or staging.  [default: ZFAST_ENVIRONMENT, else default]
    folder
        The key folder.  [default: ZFAST_KEYS, else ~/.config/zfast/keys]
    json
        Print JSON and nothing else.
    """
    if name is not None and (kind == "server") != (name == "server"):
        raise ConfigError(
            f"a {kind}'s key cannot be called {name!r}",
            hint="a server's is called server, and no other; for a second one name another "
            "--environment or --folder",
        )
    keys, environment = open_keys(folder, environment)
    own = keys.new(environment, kind if name is None else name)
    public = keys.path / environment / f"{own.name}.pub"
    if json:
        _print_json({**_describe(own), "public_file": str(public)})
        return
    print(f"made {own.name} of {environment}: {own.pair.public.fingerprint}")
    print(f"its public key, to hand out: {public}")
    if kind == "server":
        print(f"on clients: zfast keys trust {public.name} --environment {environment}")
    else:
        print(
            f"on servers: zfast keys authorize {public.name} --role Worker "
            f"--environment {environment}"
        )


@app.command(name="list")
def list_(*, folder: Folder = None, json: Flag = False) -> None:
    """Show every key of the folder: own, authorized, trusted and revoked.

    Parameters
    ----------
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    from zfast.security.curve_keys import fingerprint

    keys, _ = open_keys(folder, None)
    rows = [_describe(own) for own in keys.list_own()]
    groups = {
        "authorized": keys.authorized(),
        "revoked": keys.revoked(),
        **{f"trusted in {name}": keys.trusted(name) for name in keys.environments()},
    }
    rows += [
        {"kind": kind, "name": name, "environment": "", "fingerprint": fingerprint(key)}
        for kind, known in groups.items()
        for key, name in known.items()
    ]
    if json:
        _print_json(rows)
        return
    for row in rows:
        where = f"{row['environment']}/" if row["environment"] else ""
        retires = row.get("retires")
        until = f"  retires {_when(float(str(retires)))}" if retires else ""
        print(f"{row['kind']!s:<18} {where + str(row['name']):<28} {row['fingerprint']}{until}")


@app.command
def show(
    what: KeyName = "server",
    /,
    *,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
) -> None:
    """Show a public key, to compare it or to hand it out.

    Parameters
    ----------
    what
        The name of a key pair of this host, or an authorized key's name or fingerprint.
    environment
        Of the key pair.
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    keys, environment = open_keys(folder, environment)
    from zfast.security.private_files import is_there

    if is_there(keys.path / environment / f"{what}.key"):
        public = keys.own_keys(environment, what)[0].pair.public
    else:
        public = keys.find(what)
    if json:
        _print_json({"name": what, "public": public.z85, "fingerprint": public.fingerprint})
    else:
        print(f"fingerprint  {public.fingerprint}\npublic       {public.z85}")


@app.command
def authorize(
    key: KeyName,
    /,
    *,
    role: RoleName | None = None,
    name: str | None = None,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
) -> None:
    """Let a client's key in.

    Parameters
    ----------
    key
        Its .pub file, or the key itself.
    role
        What it may do: adds a rule to policy.toml. It is refused if rules would give it more.
        [default: what the policy's rules say of its name, in every environment]
    name
        What to call it; rules match it.  [default: as in the file]
    environment
        Where it may do that.
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    from zfast.security.policy import KeyFacts
    from zfast.security.roles import Role

    keys, environment = open_keys(folder, environment)
    public = keys.find(key)
    if role is None and name is None and Path(key).suffix == ".pub":
        _see_who_it_is(Path(key), public.name)
    name = public.name if name is None else name
    if not name:
        raise ConfigError("a key without a name", hint="give it one with --name")
    path = keys.authorize(public, name, Role(role) if role else None, environment)
    decisions = keys.policy().decide_everywhere(KeyFacts(name, public.fingerprint))
    roles = {where: each.role.value for where, each in decisions.items() if each.role is not None}
    if json:
        _print_json(
            {"name": name, "fingerprint": public.fingerprint, "file": str(path), "roles": roles}
        )
        return
    print(f"authorized {name}: {public.fingerprint}")
    for where, its_role in roles.items():
        print(
            f"it is {its_role} in {'any environment that no rule names' if where == '*' else where}"
        )
    if not roles:
        print("no rule of policy.toml gives it a role")


@app.command
def trust(
    file: GivenPath,
    /,
    *,
    name: str | None = None,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
) -> None:
    """Let clients of this host connect to a server.

    Parameters
    ----------
    file
        The server's .pub file, brought here by a way that you trust.
    name
        What to call it.  [default: as in the file]
    environment
        Whose server it is.
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    from zfast.security.key_files import read_public_key

    keys, environment = open_keys(folder, environment)
    public = read_public_key(file)
    path = keys.trust(environment, public, (public.name or "server") if name is None else name)
    if json:
        _print_json({"fingerprint": public.fingerprint, "file": str(path)})
    else:
        print(f"trusted in {environment}: {public.fingerprint}")
        print(f"compare it with 'zfast keys show server -e {environment}' on the server")


@app.command
def rotate(
    name: str = "server",
    /,
    *,
    grace_hours: Annotated[float, Parameter(validator=Number(gte=0))] = 24.0,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
) -> None:
    """Put a new key pair in the place of one; a running server takes it up by itself.

    A client is refused until servers have the new key. To change its key without a gap, make and
    authorize one of another name, and revoke the old one when nothing uses it any more.

    Parameters
    ----------
    name
        The key pair, server or a client's.
    grace_hours
        How long a server serves the old key too; ten years at most.
    environment
        Of the key pair.
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    keys, environment = open_keys(folder, environment)
    old = keys.own_keys(environment, name)[0].pair.public
    own = keys.rotate(environment, name, grace_hours * 3600)
    if json:
        _print_json({**_describe(own), "previous_fingerprint": old.fingerprint})
        return
    print(f"new key of {environment}/{name}: {own.pair.public.fingerprint}")
    if name == "server":
        until = _when(time.time() + grace_hours * 3600)
        print(f"the old one, {old.fingerprint}, is served until {until}")
        print(f"until then, on clients: zfast keys trust {name}.pub --name NEW-NAME "
              f"--environment {environment}")  # fmt: skip
    else:
        print(f"bring {name}.pub to the servers that let the old one in; there, in this order:")
        # A fingerprint may begin with a hyphen.
        print(f"zfast keys revoke -- {old.fingerprint[:16]}")
        print(f"zfast keys authorize {name}.pub")
        print("what runs with the old key is cut off then: start it again")


@app.command
def revoke(key: KeyName, /, *, folder: Folder = None, json: Flag = False) -> None:
    """Let a key in no more: running servers cut its connections within a second.

    Parameters
    ----------
    key
        Its name, fingerprint (8 characters are enough), .pub file, or the key itself.
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    keys, _ = open_keys(folder, None)
    public = keys.find(key)
    path = keys.revoke(public, public.name)
    if json:
        _print_json({"fingerprint": public.fingerprint, "file": str(path)})
    else:
        print(f"revoked {public.name or 'key'}: {public.fingerprint}")


def _see_who_it_is(file: Path, name: str) -> None:
    """The rules alone decide on its role, by a name: not by one that only the file gives itself."""
    if name != file.stem:
        raise ConfigError(
            f"{file} calls itself {name or 'nothing'}: which rules are meant for it?",
            hint="say who it is with --name, or what it may do with --role",
        )


def _describe(own: OwnKey) -> dict[str, object]:
    return {
        "kind": "own",
        "name": own.name,
        "environment": own.environment,
        "public": own.pair.public.z85,
        "fingerprint": own.pair.public.fingerprint,
        "retires": own.retires,
    }


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print_json(value: object) -> None:
    print(json_module.dumps(value, indent=2))
