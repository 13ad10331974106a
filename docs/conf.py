"""Sphinx's settings. ``python3 dev.py docs`` builds the site; every warning is an error."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import zfast

project = "zfast"
author = "The zfast authors"
copyright = "The zfast authors"
version = release = zfast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "zfast"
html_static_path = ["_static"]
html_copy_source = False

_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")


def fences_to_blocks(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Markdown's fences, which Prefect shows in docstrings of blocks, as blocks of code."""
    inside = False
    for i, line in enumerate(lines):
        if fence := _FENCE.match(line):
            indent, language = fence.groups()
            lines[i] = "" if inside else f"{indent}.. code-block:: {language}\n"
            inside = not inside
        elif inside:
            lines[i] = f"    {line}"
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Sphinx) -> None:
    """Before napoleon, which would take the fences for text."""
    app.connect("autodoc-process-docstring", fences_to_blocks, priority=100)
