"""``zfast top``: flows, tasks by state, throughput, latencies and workers, live."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.live import Live

from zfast.cli.event_options import HERE, Source
from zfast.cli.key_options import Flag
from zfast.cli.top_screen import as_figures, draw
from zfast.errors import ChannelClosedError, RecvTimeoutError
from zfast.events.event import Kind
from zfast.events.subscription import Subscription
from zfast.events.tally import Tally

_ESCAPE = "\x1b"
_BACKSPACE = ("\x7f", "\b")


def top(
    *,
    flow: Annotated[list[str] | None, Parameter(negative="")] = None,
    interval: Annotated[float, Parameter(validator=Number(gte=0.1))] = 0.5,
    once: Flag = False,
    json: Flag = False,
    source: Source = HERE,
) -> None:
    """Show flows, tasks by state, throughput, latencies and workers, until q or Ctrl-C.

    Keys: / types a filter, Esc shows all again, q ends.

    Parameters
    ----------
    flow
        A flow's name; give it several times for several.
    interval
        Seconds between two pictures.
    once
        Show one picture, after an interval, and end.
    json
        Each picture as a JSON object on a line.
    """
    subscription = source.subscribe(flows=flow or (), kinds=[kind.value for kind in Kind])
    # What stops a service stops this one cleanly too.
    signal.signal(signal.SIGTERM, lambda *_: subscription.close())
    tally = Tally()
    with contextlib.suppress(ChannelClosedError), subscription as events:
        if once or json:
            while True:
                _gather(events, tally, interval)
                _print(tally, json=json)
                if once:
                    return
        _show(events, tally, interval)


def _show(events: Subscription, tally: Tally, interval: float) -> None:
    pattern, typing = "", False
    with _keys() as keyboard, Live(screen=True, auto_refresh=False) as live:
        while True:
            width, height = shutil.get_terminal_size((80, 24))
            live.update(
                draw(tally, width=width, height=height - 1, pattern=pattern, typing=typing),
                refresh=True,
            )
            for key in _gather(events, tally, interval, keyboard):
                if typing and key in ("\r", "\n"):
                    typing = False
                elif key == _ESCAPE:
                    pattern, typing = "", False
                elif typing:
                    pattern = pattern[:-1] if key in _BACKSPACE else pattern + key
                elif key == "/":
                    typing = True
                elif key == "q":
                    return


def _gather(events: Subscription, tally: Tally, seconds: float, keyboard: int | None = None) -> str:
    """Count what comes in some seconds; less, if a key was pressed: what was typed."""
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            tally.add(events.recv(min(left_s, 0.05)))
        except RecvTimeoutError:
            pass
        if keyboard is not None and select.select([keyboard], [], [], 0)[0]:
            return os.read(keyboard, 64).decode(errors="ignore")
    return ""


def _print(tally: Tally, *, json: bool) -> None:
    if json:
        sys.stdout.write(msgspec.json.encode(as_figures(tally)).decode() + "\n")
        sys.stdout.flush()
        return
    width, height = shutil.get_terminal_size((80, 24))
    Console(highlight=False).print(draw(tally, width=width, height=height))


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard, key by key; None where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
