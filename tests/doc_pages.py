"""The documentation's pages, read as those who test it need them: sections and code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Languages of blocks that hold commands.
SHELL_LANGUAGES = ("", "sh", "bash", "console", "shell")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def docs_page(name: str) -> Path:
    """A page below ``docs``."""
    return ROOT / "docs" / name


def blocks(text: str) -> list[tuple[str, str]]:
    """The code blocks of a text, in order, each with its language; "" has none."""
    return _BLOCK.findall(text)


def sections(path: Path) -> Iterator[tuple[str, str]]:
    """The sections of a page, by title; what comes before the first is of title ""."""
    title = ""
    for part in re.split(r"^(?=## )", path.read_text(), flags=re.MULTILINE):
        if part.startswith("## "):
            title = part.partition("\n")[0][3:]
        yield title, part


def blocks_of(path: Path, section: str, language: str) -> list[str]:
    """The code blocks of a section in a language."""
    return [
        block
        for title, text in sections(path)
        if title == section
        for of_language, block in blocks(text)
        if of_language == language
    ]


def joined_lines(block: str) -> list[str]:
    """The lines of a block of commands; what a backslash continues is one."""
    return block.replace("\\\n", " ").splitlines()
