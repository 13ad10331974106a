"""A DataFrame and a batch of small messages from one process to another, without Prefect.

Run: python examples/channel.py
"""

import multiprocessing
import tempfile

import numpy as np
import pandas as pd

from zfast import Channel


def produce(endpoint: str) -> None:
    with Channel.connect(endpoint) as channel:
        channel.send(pd.DataFrame({"reading": np.arange(1_000_000) / 7}))
        channel.send_many([f"message {i}".encode() for i in range(10_000)])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/example.sock"
        producer = multiprocessing.get_context("spawn").Process(target=produce, args=[endpoint])
        with Channel.bind(endpoint) as channel:
            producer.start()
            frame = channel.recv(timeout=60)
            print(f"{len(frame):,} rows, mean {frame['reading'].mean():.1f}")
            n_messages = 0
            while n_messages < 10_000:
                batch = channel.recv_many(timeout=10)
                n_messages += len(batch)
            print(f"{n_messages:,} messages, the last: {bytes(batch[-1]).decode()!r}")
        producer.join()


if __name__ == "__main__":
    main()
