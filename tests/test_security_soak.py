"""The soak of strangers in a small form; ``python3 dev.py soak-security`` is the long one."""

from __future__ import annotations

from soak_security import soak


def test_three_thousand_strangers_cost_nothing_and_honest_clients_are_served():
    report = soak(3000, 1)
    assert len(report.newcomers_ms) >= 3
