"""``zfast doctor``: what is wrong on this machine, what is slow, and what to do."""

from __future__ import annotations

import sys

import msgspec

from zfast.cli.key_options import Environment, Flag, Folder, settings_of

#: Problems were found.
_PROBLEMS = 3


def doctor(
    *endpoints: str,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
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
    settings = settings_of(folder, environment)
    from zfast.diagnosis.examination import examine
    from zfast.diagnosis.finding import Level

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
