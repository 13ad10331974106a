"""The soaks of strangers and of mutated frames in a small form; the long one is
``python3 dev.py soak-security``.
"""

from __future__ import annotations

import os

import soak_sockets
from soak_security import soak

#: Against each socket; a sanitizer's run may have more.
N_FRAMES = int(os.environ.get("ZFAST_FUZZ_FRAMES", "10000"))


def test_three_thousand_strangers_cost_nothing_and_honest_clients_are_served():
    report = soak(3000, 1)
    assert len(report.newcomers_ms) >= 3


def test_ten_thousand_mutated_frames_against_each_socket_do_no_harm():
    report = soak_sockets.soak(N_FRAMES, 1)
    print(report)
    assert all(n >= N_FRAMES for n in report.frames.values())
