"""Standard input, output and error of the command, such as its caller left them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class OutputError(OSError):
    """Standard output takes no more: its disk is full, or its reader has gone."""


def prepare_streams() -> None:
    """Put nothing in the place of what was closed; tell output's own errors from all others."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    given = sys.stdout
    if isinstance(given, io.TextIOWrapper) and given is sys.__stdout__:  # it lives on there
        sys.stdout = _Output(
            given.buffer,
            given.encoding,
            given.errors,
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )


class _Output(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        with _as_output_error():
            return super().write(text)

    def flush(self) -> None:
        with _as_output_error():
            super().flush()


@contextmanager
def _as_output_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error
