"""The soak of events in a small form; ``python3 dev.py soak-events`` is the long one."""

from __future__ import annotations

from pathlib import Path

from soak_events import soak


def test_fifty_subscribers_join_and_leave(short_folder: Path) -> None:
    soak(50, 3, 1, short_folder)
