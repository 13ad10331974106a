"""The soak test of hand-overs, in short."""

from __future__ import annotations

import os

import pytest

from soak_handover import soak

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="peers share memory on Linux only"
)


@pytest.mark.timeout(300)
def test_random_hand_overs_with_kills_and_forks():
    counts = soak(300, seed=5)
    assert counts["hand-overs"] >= 300
    assert min(counts[what] for what in ("make", "check", "read", "pass_on")) > 10
