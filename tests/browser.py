"""A real browser without a window, where this host has one: Chromium, of any package."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """Why there is no browser, or nothing."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install 'zfast[test]'"
    if _executable() is None:
        return "there is no Chromium: apt-get install chromium-headless-shell"
    return ""


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser for as long as this lasts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not run as root, as which containers do.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=_executable(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def _executable() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)
