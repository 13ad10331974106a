"""``zfast doctor``: what is wrong on this machine, what is slow, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from zfast.errors import ConfigError

#: Problems were found.
_PROBLEMS = 3


def doctor(
    *endpoints: str,
    environment: Annotated[
        str | None, Parameter(name=["--environment", "-e"], show_default=False)
    ] = None,
    folder: Annotated[Path | None, Parameter(show_default=False)] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> int:
    """Show what is wrong on this machine, what is slow, and what to do.

    Exit status: 0 all is well, perhaps slow; 1 it could not look; 3 there are problems.

    Parameters
    ----------
    endpoints
        Of servers, tcp://HOST:PORT, to be tried as a stranger would.
    environment
        Whose keys.  [default: ZFAST_ENVIRONMENT, else default]
    folder
        The key folder.  [default: ZFAST_KEYS, else ~/.config/zfast/keys]
    json
        Print JSON and nothing else.
    """
    try:
        from zfast.diagnosis.examination import examine
        from zfast.security.settings import load_settings
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the doctor needs {error.name}", hint="pip install 'zfast[security,cli]'"
        ) from error
    from zfast.diagnosis.finding import Level

    settings = load_settings()
    if environment is not None:
        settings = settings.model_copy(update={"environment": environment})
    if folder is not None:
        settings = settings.model_copy(update={"keys": folder})
    found = []
    signs = {Level.OK: "✓", Level.NOTE: "·", Level.SLOW: "~", Level.PROBLEM: "✗"}
    for finding in examine(settings, endpoints):
        found.append(finding)
        if json:
            continue
        print(f"{signs[finding.level]} {finding.check:<14} {finding.message}")
        if finding.hint:
            print(f"  {'':<14} → {finding.hint}")
        sys.stdout.flush()  # some of it takes a while
    if json:
        print(msgspec.json.encode([finding.to_dict() for finding in found]).decode())
    return _PROBLEMS if any(finding.level is Level.PROBLEM for finding in found) else 0
