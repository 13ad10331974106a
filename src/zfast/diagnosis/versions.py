"""Are the packages that zfast uses there, in versions that it works with?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from zfast.diagnosis.finding import Finding, Level

_CHECK = "versions"
#: What people ask about first.
_SHOWN = ("prefect", "pyzmq", "numpy")


def check_versions(distribution: str = "zfast") -> Iterator[Finding]:
    """Compare what is installed with what a distribution asks for.

    A package that only an extra needs may be missing; if it is there, its version counts.
    """
    try:
        requirements = metadata.requires(distribution) or []
        version = metadata.version(distribution)
        extras = metadata.metadata(distribution).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"{distribution} is imported but not installed",
            hint="pip install zfast",
        )
        return
    found = [f"{distribution} {version}", f"Python {sys.version.split()[0]}"]
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        needed = marker is None or marker.evaluate()
        if marker is not None and not any(
            marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if needed:
                yield _wrong(requirement, f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield _wrong(requirement, f"{requirement.name} {installed} is not supported")
        elif requirement.name in _SHOWN:
            found.append(f"{requirement.name} {installed}")
    yield Finding(_CHECK, Level.OK, ", ".join(dict.fromkeys(found)))


def _wrong(requirement: Requirement, message: str) -> Finding:
    wanted = f"{requirement.name}{requirement.specifier}"
    return Finding(_CHECK, Level.PROBLEM, message, hint=f"pip install '{wanted}'")
