"""What any installation does, also one without extras: values and batches between processes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from zfast import Channel

pytestmark = pytest.mark.filterwarnings("ignore:.*is not encrypted")

ECHO = """
import sys
from zfast import Batch, Channel
with Channel.connect(sys.argv[1], insecure=sys.argv[1].startswith("tcp")) as channel:
    while (value := channel.recv(timeout=60)) is not None:
        if isinstance(value, Batch):
            channel.send_many(value.to_bytes_list())
        else:
            channel.send(value)
"""
VALUES = {
    "a small one": {"answer": 42, "text": "zfast"},
    "bytes": b"\0" * 5000,
    "an array inline": np.arange(100),
    "an array in a frame": np.arange(50_000.0),
    "a streamed array": np.arange(1_000_000.0),
}


@pytest.fixture(scope="module", params=["ipc", "tcp", "ipc, the other's core in plain Python"])
def echo(request, tmp_path_factory):
    """A channel to another process that sends everything back."""
    transport, _, plain = request.param.partition(",")
    folder = tmp_path_factory.mktemp("s")
    endpoint = f"ipc://{folder}/s" if transport == "ipc" else "tcp://127.0.0.1:*"
    environment = {**os.environ, **({"ZFAST_CORE": "plain"} if plain else {})}
    with Channel.bind(endpoint, insecure=transport == "tcp") as channel:
        process = subprocess.Popen([sys.executable, "-c", ECHO, channel.endpoint], env=environment)
        try:
            yield channel
            channel.send(None, timeout=60)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("what", VALUES)
def test_a_value_comes_back_as_it_was(echo, what):
    value = VALUES[what]
    echo.send(value, timeout=60)
    back = echo.recv(timeout=60)
    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value


def test_a_batch_comes_back_as_it_was(echo):
    payloads = [bytes([i % 256]) * (i % 100) for i in range(5000)]
    echo.send_many(payloads, timeout=60)
    back = [bytes(item) for item in echo.recv_many(timeout=60)]
    assert back == payloads
