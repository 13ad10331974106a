"""The documentation site."""

from __future__ import annotations

from dev.environment import BUILD, PYTHON, run

SITE = BUILD / "docs"


def build(arguments: list[str]) -> int:
    """Build the site, every warning an error.

    Args:
        arguments: Further ones for Sphinx.
    """
    sphinx = (PYTHON, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--jobs", "auto")
    return run(*sphinx, "-b", "html", *arguments, "docs", SITE)
