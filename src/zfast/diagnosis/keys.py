"""Are this host's keys there, closed to others, and does the policy know them?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from zfast.diagnosis.finding import Finding, Level
from zfast.errors import ConfigError
from zfast.security.curve_keys import fingerprint
from zfast.security.held_secrets import SECRET_VARIABLES, taken_secret
from zfast.security.key_files import (
    OwnKey,
    read_mounted_pair,
    read_pair,
    read_public_keys,
)
from zfast.security.key_folder import KeyFolder
from zfast.security.policy import KeyFacts, Policy, read_policy
from zfast.security.private_files import check_private_folder, is_there, list_folder
from zfast.security.settings import SecuritySettings

_CHECK = "keys"
_T = TypeVar("_T")


def check_keys(settings: SecuritySettings) -> Iterator[Finding]:
    """Read everything that a server or a client here would read, and see what it comes to."""
    folder = KeyFolder(settings.key_folder)
    findings = [*_look_at_variables(), *_look_at_mounted(settings)]
    has_folder, wrong = _try(partial(is_there, folder.path))
    findings += wrong
    if has_folder:
        findings += _look_at_folder(folder, settings)
    yield from findings
    if any(finding.level is Level.PROBLEM for finding in findings):
        return
    if has_folder:
        yield Finding(_CHECK, Level.OK, f"{folder.path} is whole, and closed to others")
    elif settings.server_secret_key_file is None and settings.client_secret_key_file is None:
        yield Finding(
            _CHECK,
            Level.NOTE,
            f"there is no key folder {folder.path}: no tcp endpoint can be opened",
            hint="'zfast keys new server', if other hosts are to connect",
        )


def _look_at_variables() -> Iterator[Finding]:
    for name in SECRET_VARIABLES:
        if taken_secret(name) is not None:
            yield _note(
                f"{name} held a secret: /proc/PID/environ keeps showing it to this user",
                hint=f"a file is safer: {name}_FILE",
            )


def _look_at_mounted(settings: SecuritySettings) -> Iterator[Finding]:
    folder, policy, client = (
        settings.authorized_folder,
        settings.policy_file,
        settings.client_secret_key_file,
    )
    server = settings.server_secret_key_file
    if client is not None:
        yield from _try(partial(read_mounted_pair, "client", client))[1]
    if server is not None:
        yield from _try(partial(read_mounted_pair, "server", server))[1]
    if folder is not None:
        yield from _try(partial(read_public_keys, folder))[1]
    if policy is not None:
        yield from _try(partial(read_policy, policy))[1]


def _look_at_folder(folder: KeyFolder, settings: SecuritySettings) -> Iterator[Finding]:
    yield from _try(partial(check_private_folder, folder.path))[1]
    own: list[OwnKey] = []
    environments, wrong = _try(folder.environments)
    yield from wrong
    for environment in environments or ():
        paths, wrong = _try(partial(list_folder, folder.path / environment, ".key"))
        yield from wrong
        for path in paths or ():
            pair, wrong = _try(partial(_read_own, path))
            yield from wrong
            if pair is not None:
                own.append(pair)
        yield from _try(partial(folder.trusted, environment))[1]
    authorized, wrong = _try(folder.authorized)
    yield from wrong
    revoked, wrong = _try(folder.revoked)
    yield from wrong
    policy, wrong = _try(folder.policy)
    yield from wrong
    for pair in own:
        yield from _look_at_own(pair, revoked or {})
    if policy is not None:
        served = {settings.environment, *(pair.environment for pair in own)}
        yield from _look_at_roles(authorized or {}, policy, served)


def _read_own(path: Path) -> OwnKey:
    check_private_folder(path.parent)
    return read_pair(path.parent.name, path.name.removesuffix(".key"), path)


def _look_at_own(own: OwnKey, revoked: Mapping[str, str]) -> Iterator[Finding]:
    name = f"{own.environment}/{own.name}"
    if own.pair.public.z85 in revoked:
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"our own key {name} is revoked",
            hint=f"zfast keys rotate {own.name} --environment {own.environment} --grace-hours 0",
        )
    if own.retires is None:
        return
    left_h = (own.retires - time.time()) / 3600
    if left_h > 0:
        yield _note(
            f"{name} is in its grace window: {own.pair.public.fingerprint} is served for "
            f"{left_h:.1f} h more",
            hint="until then, let every client trust the new key: zfast keys trust server.pub",
        )


def _look_at_roles(
    authorized: Mapping[str, str], policy: Policy, environments: set[str]
) -> Iterator[Finding]:
    for rule in policy.rules:
        environments = environments | (set(rule.environments) - {"*"})
    for key, name in authorized.items():
        facts = KeyFacts(name, fingerprint(key))
        if not any(policy.decide(facts, where).role for where in environments):
            yield _note(
                f"{name} is authorized and has no role anywhere: it is refused",
                hint=f"zfast keys authorize {facts.fingerprint[:16]} --name {name} --role ROLE",
            )


def _try(read: Callable[[], _T]) -> tuple[_T | None, list[Finding]]:
    try:
        return read(), []
    except ConfigError as error:
        return None, [Finding(_CHECK, Level.PROBLEM, error.message, error.hint or "")]


def _note(message: str, hint: str) -> Finding:
    return Finding(_CHECK, Level.NOTE, message, hint)
