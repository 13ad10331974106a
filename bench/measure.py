"""Rounds of all peers of a group, taken in turns, and how they become pytest-benchmark rows.

On a shared machine the speed of everything drifts by tens of per cent within minutes. Rows that
pytest-benchmark measures one after the other would differ by that drift. So a group is measured
as a whole when the first of its rows is asked for: all peers are started, then take turns, one
round each, the first peer changing from pass to pass. The durations are kept.

Each row is a test of its own that hands its durations to pytest-benchmark by two public means: the
``timer`` of its ``benchmark`` marker is a `ReplayClock`, and the function that ``pedantic`` times
moves this clock on by the next duration. Tables, statistics and JSON are pytest-benchmark's own.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol


class Peer(Protocol):
    """Something that runs rounds: it times itself, and checks its own results."""

    def round(self) -> Mapping[str, float]:
        """Run one round; what was measured, by name: seconds, bytes, counts."""

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass
class Measurement:
    """What came of one peer: rounds in the order of the passes, or why there are none."""

    rounds: list[Mapping[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    lost: str | None = None
    unavailable: str | None = None

    def values(self, name: str) -> list[float]:
        """What was measured under this name, round by round; empty if it is not known here."""
        return [measured[name] for measured in self.rounds if name in measured]

    def median(self, name: str) -> float | None:
        """The median of the same, if there is any."""
        values = self.values(name)
        return median(values) if values else None

    def ratio(self, name: str, nbytes: float) -> float | None:
        """The median, in sizes of a payload."""
        value = self.median(name)
        return None if value is None else value / nbytes


class UnavailablePeerError(RuntimeError):
    """This peer cannot be measured here; its message says what is missing."""


def measure_in_turns(
    openers: Mapping[str, Callable[[], Peer]], *, rounds: int, warmup_rounds: int
) -> dict[str, Measurement]:
    """Start all peers and let them take turns. One that fails is lost; the others go on."""
    measurements = {name: Measurement() for name in openers}
    peers: dict[str, Peer] = {}
    try:
        for name, open_peer in openers.items():
            try:
                peers[name] = open_peer()
            except UnavailablePeerError as error:
                measurements[name].unavailable = str(error)
            except Exception as error:
                measurements[name].lost = _describe(error)
        for i in range(-warmup_rounds, rounds):
            for name in _rotated(list(peers), i):
                try:
                    measured = peers[name].round()
                except Exception as error:
                    measurements[name].lost = _describe(error)
                    peers.pop(name).close()
                    continue
                if i >= 0:
                    measurements[name].rounds.append(measured)
        for name, peer in peers.items():
            measurements[name].extra.update(getattr(peer, "extra", {}))
    finally:
        for peer in peers.values():
            peer.close()
    return measurements


def _describe(error: Exception) -> str:
    """What went wrong on the first line, then where."""
    where = "".join(traceback.format_tb(error.__traceback__)[-2:])
    return f"{error or type(error).__name__}\n{where}"


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by = by % len(names) if names else 0
    return [*names[by:], *names[:by]]


class ReplayClock:
    """A clock that only moves when told to: the timer of rows that were measured before."""

    def __init__(self) -> None:
        """Start at zero."""
        self._now = 0.0

    def now(self) -> float:
        """Return the time on this clock, in seconds."""
        return self._now

    def replay(self, durations: Sequence[float]) -> Callable[[], None]:
        """Return a function that takes the next of the durations each time it is called."""
        # From zero for each row: small durations are not rounded off by a large sum.
        self._now = 0.0
        left: Iterator[float] = iter(durations)

        def take_next() -> None:
            self._now += next(left)

        return take_next


replay_clock = ReplayClock()
