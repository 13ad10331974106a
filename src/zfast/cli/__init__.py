"""The command ``zfast``: its entry point, and what each kind of end means to the shell."""

from __future__ import annotations

import sys

_EXTRA = ("cyclopts", "rich", "psutil")


def main() -> None:
    """Run the command line and exit.

    Exit status: 0 done, 1 it failed and said why, 2 the command line is wrong, 130 Ctrl-C; a verb
    may have more, which its help names.
    """
    try:
        from zfast.cli.app import run

        status = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        print(f"zfast: the command line needs {missing}: pip install 'zfast[cli]'", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
