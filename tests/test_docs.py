"""The documentation: its programs run, its commands exist, its pictures and links are there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys

import pytest

from doc_pages import PAGES, ROOT, SHELL_LANGUAGES, blocks, docs_page, joined_lines

#: Pages whose programs are whole, each run by itself.
PROGRAM_PAGES = ("quickstart.md",)


def programs():
    """The pages' programs; all but the first wait for a long run."""
    marks = []
    for name in PROGRAM_PAGES:
        for i, (language, text) in enumerate(blocks(docs_page(name).read_text())):
            if language == "python":
                yield pytest.param(text, id=f"{name}-{i}", marks=marks)
                marks = [pytest.mark.long]


def commands(first):
    """The command lines in all pages' blocks that begin with ``first``, without comments."""
    for path in PAGES:
        for language, text in blocks(path.read_text()):
            if language in SHELL_LANGUAGES:
                for line in joined_lines(text):
                    line = line.removeprefix("$ ").partition("  #")[0].strip()
                    if line.startswith(first + " "):
                        yield path.name, shlex.split(line, comments=True)


@pytest.mark.parametrize("text", list(programs()))
def test_a_program_in_the_quickstart_runs(text, prefect_api, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PREFECT_API_URL": prefect_api},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_python_block_is_python():
    for path in PAGES:
        for language, text in blocks(path.read_text()):
            if language == "python":
                lone_decorator = text.startswith("@") and "def " not in text
                ast.parse(text + "def f(): ..." * lone_decorator)


def test_every_zfast_command_and_option_exists(capsys):
    from zfast.cli.app import run

    helps = {}
    seen = 0
    for page, words in commands("zfast"):
        verbs = []
        for word in words[1:]:
            if not re.fullmatch(r"[a-z]+", word) or len(verbs) == 2:
                break
            verbs.append(word)
        while True:
            key = tuple(verbs)
            if key not in helps:
                status = run([*verbs, "--help"])
                helps[key] = (status, capsys.readouterr().out)
            if helps[key][0] == 0 or len(verbs) < 2:
                break
            verbs.pop()  # the last word was an argument
        status, text = helps[key]
        assert status == 0, f"{page}: zfast {' '.join(verbs)} is no command"
        for option in words[1:]:
            name = option.partition("=")[0].rstrip(",;.")
            if name.startswith("--") and name != "--help" and name != "--":
                assert name in text, f"{page}: zfast {' '.join(verbs)} has no {name}"
        seen += 1
    assert seen > 5


def test_every_developers_command_exists():
    source = (ROOT / "dev.py").read_text()
    names = set(re.findall(r'^    "([a-z-]+)": \(', source, re.MULTILINE))
    for page, words in commands("python3"):
        if words[1] == "dev.py":
            assert words[2] in names, f"{page}: {' '.join(words)}"


def test_links_between_pages_and_pictures_lead_somewhere():
    for path in PAGES:
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#:\s]+)[^)]*\)|```\{image\} (\S+)", text):
            relative = target[0] or target[1]
            if relative in ("http", "https"):
                continue  # another site
            assert (path.parent / relative).exists(), f"{path.name}: {relative}"


def test_each_modules_first_line_says_what_it_is_for():
    for path in sorted((ROOT / "src" / "zfast").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        first = docstring.partition("\n")[0]
        assert len(first) > 15, path
