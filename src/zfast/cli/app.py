"""The tree of verbs. Each is a module of its own, imported when it is run or asked for help."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Sequence

from cyclopts import App, CycloptsError
from rich.console import Console
from rich.markup import escape

from zfast import __version__
from zfast.cli.standard_streams import OutputError
from zfast.errors import ZfastError


class _Verbs(App):
    def help_print(
        self, tokens: str | Iterable[str] | None = None, *, console: Console | None = None
    ) -> None:
        """Print help; of a verb its docstring, in the place of its line in the list."""
        verb = self.parse_commands(tokens)[1][-1]
        if verb.default_command is not None:
            verb.help = None
        super().help_print(tokens, console=console)


app = _Verbs(
    name="zfast",
    help="The fast path for data in Prefect flows.",
    version=__version__,
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    result_action="return_value",
    # Ctrl-C is main's, which gives the shell's exit status for it.
    suppress_keyboard_interrupt=False,
)
# The help here is a line in the list of verbs, which imports none of them; of those that have verbs
# of their own it is all there is.
app.command(
    "zfast.cli.demo:demo",
    name="demo",
    help="Run one flow on Prefect's task runners and on zfast's, side by side.",
)
app.command(
    "zfast.cli.bench:bench",
    name="bench",
    help="What limits this machine, and how much faster zfast is on it.",
)
app.command(
    "zfast.cli.store:app",
    name="store",
    help="Look at a result store, check it, clean it up, move results in and out.\n\n"
    "Exit status: 0 all is well; 1 it failed and said why; 2 the command line is wrong; 3 it was "
    "done, and objects are damaged (verify) or could not be moved (import, export), or the store "
    "still exceeds its budget (gc); 4 no object is damaged, but some files or folders "
    "could not be looked at (ls, verify, gc) or are no objects (verify).",
)
app.command(
    "zfast.cli.keys:app",
    name="keys",
    help="Make, list, authorize, rotate and revoke CURVE keys.",
)
app.command(
    "zfast.cli.token:app",
    name="token",
    help="See what a bearer token, or a key, is allowed.",
)
app.command(
    "zfast.cli.doctor:doctor",
    name="doctor",
    help="Show what is wrong on this machine, what is slow, and what to do.",
)
app.command(
    "zfast.cli.watch:watch",
    name="watch",
    help="Show the states of runs as they happen.",
)
app.command(
    "zfast.cli.top:top",
    name="top",
    help="Show flows, tasks by state, throughput, latencies and workers, live.",
)
app.command(
    "zfast.cli.metrics:metrics",
    name="metrics",
    help="Serve metrics of the states of runs for Prometheus.",
)
app.command(
    "zfast.cli.ui:ui",
    name="ui",
    help="A local page of what runs, live.",
)
app.command(
    "zfast.cli.relay:relay",
    name="relay",
    help="One endpoint for the events of many processes.",
)
app.command(
    "zfast.cli.worker:worker",
    name="worker",
    help="Run tasks of a flow run on another host.",
)
app.command(
    "zfast.cli.status:status",
    name="status",
    help="Show the workers, leases and queue of flow runs.",
)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; give the exit status."""
    console = Console(stderr=True, highlight=False)
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        console.print(f"[red]zfast:[/] {escape(str(error))}", soft_wrap=True)
        console.print("Try 'zfast --help'.")
        return 2
    except ZfastError as error:
        _print_error(console, error)
        return 1
    except OutputError as error:
        # What is left may not be written at exit either.
        sys.stdout = None
        if error.errno != errno.EPIPE:
            console.print(f"[red]zfast:[/] cannot write the output: {error.strerror}")
        return 1
    return status if isinstance(status, int) else 0


def _print_error(console: Console, error: ZfastError) -> None:
    console.print(f"[red]zfast:[/] {escape(error.message)}", soft_wrap=True)
    if error.detail:
        console.print(escape(error.detail), style="dim", soft_wrap=True)
    if error.hint:
        console.print(f"[green]hint:[/] {escape(error.hint)}", soft_wrap=True)
