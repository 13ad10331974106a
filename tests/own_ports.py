"""Open ports of one test run alone: the doctor greets no processes of tests that run beside it."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from zfast.diagnosis.listening import listening_ports


def ports_of_children(pid: int) -> Callable[[], list[tuple[int, str, int]]]:
    """In place of ``listening_ports``: of one process's children, and theirs, only."""

    def find() -> list[tuple[int, str, int]]:
        own = {child.pid for child in psutil.Process(pid).children(recursive=True)}
        return [found for found in listening_ports() if found[0] in own]

    return find
