"""What paired rounds say: a ratio, how sure it is, and whether it is a change.

Rounds of the two sides are taken in turns, so that what slows the machine for a while slows both.
Of each pair only the ratio counts. The interval is that of the median by order statistics: it
supposes nothing about how the noise is distributed, and single outliers move it little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

#: Of all rows together: how seldom a comparison of unchanged code may raise an alarm.
FALSE_ALARM = 0.01
#: A slowdown below this is nobody's concern, however sure it is.
MARGIN = 0.02


class Verdict(Enum):
    """What became of a row."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "no change seen"
    TOO_FEW = "too few rounds"


@dataclass(frozen=True)
class Judgement:
    """A row's change.

    Attributes:
        ratio: The median of (seconds now ÷ seconds before), pair by pair.
        low, high: Its confidence interval.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict


def paired_ratios(before: Sequence[float], now: Sequence[float]) -> list[float]:
    """Seconds now ÷ seconds before, round by round. They must be as many."""
    return [new / old for old, new in zip(before, now, strict=True)]


def median_interval(values: Sequence[float], error: float) -> tuple[float, float] | None:
    """An interval that holds the median of what ``values`` are drawn from.

    Args:
        error: How often it may not, at most.

    Returns:
        Two of the values; None if they are too few for that.
    """
    ordered = sorted(values)
    n = len(ordered)
    below = 0.0  # the chance that at most k of n values lie below the median
    rank = -1
    for k in range(n):
        below += math.comb(n, k) / 2**n
        if 2 * below > error:
            break
        rank = k
    return None if rank < 0 else (ordered[rank], ordered[n - 1 - rank])


def judge(
    ratios: Sequence[float], *, rows: int = 1, margin: float = MARGIN, error: float = FALSE_ALARM
) -> Judgement:
    """Judge one of ``rows`` rows that are judged together.

    A row is slower if even the low end of its interval lies above 1 + ``margin``: noise widens
    the interval, so it hides a change rather than making one up.
    """
    interval = median_interval(ratios, error / rows)
    if interval is None:
        middle = median(ratios) if ratios else math.nan
        return Judgement(middle, math.nan, math.nan, Verdict.TOO_FEW)
    low, high = interval
    verdict = Verdict.SAME
    if low > 1 + margin:
        verdict = Verdict.SLOWER
    elif high < 1 / (1 + margin):
        verdict = Verdict.FASTER
    return Judgement(median(ratios), low, high, verdict)
