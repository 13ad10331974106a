"""Every check, in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from zfast.diagnosis.clock import check_clock
from zfast.diagnosis.finding import Finding, Level
from zfast.diagnosis.keys import check_keys
from zfast.diagnosis.libraries import check_libraries
from zfast.diagnosis.listening import check_listening
from zfast.diagnosis.memory import check_descriptors, check_memory
from zfast.diagnosis.shared_memory import check_huge_pages, check_shared_memory
from zfast.diagnosis.stranger import check_endpoint, parse_tcp
from zfast.diagnosis.tokens import check_token
from zfast.diagnosis.versions import check_versions
from zfast.errors import ConfigError
from zfast.security.curve_keys import PublicKey
from zfast.security.key_folder import KeyFolder
from zfast.security.settings import SecuritySettings
from zfast.security.sources import load_policy, load_trusted_servers


def examine(settings: SecuritySettings, endpoints: Collection[str] = ()) -> Iterator[Finding]:
    """Look at everything; changes nothing.

    Args:
        settings: Whose keys, of which environment.
        endpoints: Of other processes or hosts, to be tried as a stranger would.

    Raises:
        ConfigError: One is no tcp endpoint; before anything is looked at.
    """
    for endpoint in endpoints:
        parse_tcp(endpoint)
    yield from check_versions()
    found = list(check_libraries())
    yield from found
    if any(finding.level is Level.PROBLEM for finding in found):
        return  # nothing else could be tried
    yield from check_keys(settings)
    yield from check_token(settings)
    yield from check_clock(settings.key_folder)
    servers, takes_tokens = _known_servers(settings), _takes_tokens(settings)
    yield from check_listening(servers, takes_tokens=takes_tokens)
    for endpoint in endpoints:
        yield from check_endpoint(endpoint, servers, takes_tokens=takes_tokens)
    yield from check_shared_memory()
    yield from check_huge_pages()
    yield from check_memory()
    yield from check_descriptors()


def _known_servers(settings: SecuritySettings) -> list[PublicKey]:
    """Keys that a server here, or one that is trusted here, may have; of every environment."""
    found: dict[str, PublicKey] = {}
    folder = KeyFolder(settings.key_folder)
    environments = [settings.environment]
    with suppress(ConfigError):  # check_keys has said so
        environments += folder.environments()
    for environment in environments:
        one = settings.model_copy(update={"environment": environment})
        try:
            keys = list(load_trusted_servers(one))
        except ConfigError:
            keys = []
        with suppress(ConfigError):
            keys += [own.pair.public for own in folder.own_keys(environment, "server")]
        found.update((key.z85, key) for key in keys)
    return list(found.values())


def _takes_tokens(settings: SecuritySettings) -> bool:
    try:
        return bool(load_policy(settings).issuers)
    except ConfigError:
        return False
