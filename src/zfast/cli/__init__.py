"""The command ``zfast``: its entry point, and what each kind of end means to the shell."""

from __future__ import annotations

import sys

from zfast.cli.standard_streams import prepare_streams

#: By package, what is installed to have it.
_EXTRAS = {
    "cyclopts": "cli",
    "rich": "cli",
    "packaging": "cli",
    "psutil": "cli",
    "jwt": "security",
    "cryptography": "security",
    "pydantic_settings": "security",
    "opentelemetry": "metrics",
    "prometheus_client": "metrics",
}


def main() -> None:
    """Run the command line and exit.

    Exit status: 0 done, 1 it failed and said why, 2 the command line is wrong, 130 Ctrl-C; a verb
    may have more, which its help names.
    """
    prepare_streams()
    try:
        from zfast.cli.app import run

        status = run(sys.argv[1:])
    except ImportError as error:
        if (reason := _reason(error)) is None:
            raise
        print(f"zfast: {reason}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _reason(error: ImportError) -> str | None:
    """What the user can mend, if it is that: a package is missing, or zfast says what is wrong."""
    # The loader of verbs wraps what it meets.
    while isinstance(error.__cause__, ImportError):
        error = error.__cause__
        if error.name is None:
            break
    if error.name is None:
        return str(error)
    package = error.name.partition(".")[0]
    if package not in _EXTRAS:
        return None
    return f"the command line needs {package}: pip install 'zfast[{_EXTRAS[package]}]'"
