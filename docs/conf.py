"""Sphinx's settings. ``python3 dev.py docs`` builds the site; every warning is an error."""

from __future__ import annotations

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
# A page that another room writes may come later than its place here.
suppress_warnings = ["toc.empty_glob"]

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
