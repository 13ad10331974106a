"""How far a long verb is, on standard error: a live line on a terminal, else a line a step."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.status import Status
    from typing_extensions import Self


class StepProgress:
    """Shows the step under way and how long those before it took. A context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._text = ""
        self._start_s = 0.0

    def step(self, text: str) -> None:
        """Show that a step begins; the one before it is done."""
        self._finish()
        self._text = text
        self._start_s = time.monotonic()
        if self._status is not None:
            self._status.update(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self, text: str) -> None:
        """Show how far the step is, on a terminal."""
        if self._status is not None:
            self._status.update(Text(f"{self._text}: {text}"))

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._finish()
        if self._status is not None:
            self._status.stop()

    def _finish(self) -> None:
        if self._status is not None and self._text:
            took = f"{self._text}: {time.monotonic() - self._start_s:.1f} s"
            self._console.print(Text(took, style="dim"))
