"""The soak test of results of other hosts, in short."""

from __future__ import annotations

import os

import pytest

from soak_direct import soak

pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.skipif(
        not hasattr(os, "memfd_create"), reason="processes share memory on Linux only"
    ),
]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_random_graphs_come_right_while_hosts_are_killed(monkeypatch):
    monkeypatch.setenv("ZFAST_KEYS", "")  # it makes keys of its own
    soak(2, 40, seed=11)
