"""Subscribers that join and leave by the hundred, some of them stuck: the publisher stays small.

    python tests/soak_events.py [--subscribers 1000] [--stuck 10] [--seed 1]

Its memory is measured at half time, when the queues to the stuck ones are full, and at the end. A
subscriber that reads all the time has lost nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from events_process import make_event
from hub_jobs import settled
from zfast.events.event import Gap, StateEvent
from zfast.events.publisher import Publisher
from zfast.events.subscription import Subscription

RATE = 2000
#: More than the queues to a subscriber hold, at a rate that those who read keep up with.
FILL_EVENTS = 30_000
FILL_RATE = 10_000
#: What the memory may grow by after the queues are full: the allocator's own ways.
GROWTH_NBYTES = 24 << 20


#: Subscribers that are there and never read: the process is stopped once they have joined.
_STUCK = """
import sys
from pathlib import Path
from zfast.events.subscription import Subscription
stuck = [Subscription(folder=Path(sys.argv[1])) for _ in range(int(sys.argv[2]))]
for subscription in stuck:
    subscription.wait_joined()
print("joined", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def stopped_subscribers(n_stuck: int, folder: Path) -> Iterator[None]:
    """So many subscribers in a process of their own, stopped."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(folder), str(n_stuck)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.communicate()


class Load:
    """Publishes until it is told to end."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._ended = threading.Event()
        self.published = 0
        self._publish_at(FILL_RATE, FILL_EVENTS)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self._publish_at(RATE, sys.maxsize)

    def _publish_at(self, rate: float, count: int) -> None:
        """So many events, so many a second, or until the end."""
        start = time.monotonic()
        for number in range(count):
            if self._ended.is_set():
                break
            self._publisher.publish(make_event(self.published % 500))
            self.published += 1
            ahead = number / rate - (time.monotonic() - start)
            if ahead > 0.01:
                self._ended.wait(ahead)


class Reader:
    """Reads all the time, and counts. It is there for what is published from now on."""

    def __init__(self, folder: Path) -> None:
        self._subscription = Subscription(folder=folder)
        self._subscription.wait_joined(20)
        self.came = self.lost = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self, published: int) -> None:
        """Let it read what was published, for a while, and end."""
        with contextlib.suppress(AssertionError):
            settled(lambda: self.came + self.lost >= published, 30)
        self._subscription.close()
        self._thread.join()

    def _run(self) -> None:
        with self._subscription as events:
            for event in events:
                self.came += isinstance(event, StateEvent)
                self.lost += event.lost if isinstance(event, Gap) else 0


def soak(n_subscribers: int, n_stuck: int, seed: int, folder: Path) -> None:
    """Run it; raises AssertionError if the publisher grew or the reader lost something."""
    chance = random.Random(seed)
    process = psutil.Process()
    with Publisher(folder=folder) as publisher, stopped_subscribers(n_stuck, folder):
        reader = Reader(folder)
        load = Load(publisher)
        try:
            warm_nbytes = 0
            joined = 0
            while joined < n_subscribers:
                batch = [
                    Subscription(folder=folder, flows=chance.choice([(), ("etl",), ("other",)]))
                    for _ in range(min(10, n_subscribers - joined))
                ]
                for subscription in batch:
                    subscription.wait_joined(20)
                    if chance.random() < 0.8:
                        subscription.close()
                        subscription.__exit__(None, None, None)
                for subscription in batch:
                    subscription.__exit__(None, None, None)
                joined += len(batch)
                if not warm_nbytes and joined >= n_subscribers // 2:
                    warm_nbytes = process.memory_info().rss
            growth = process.memory_info().rss - warm_nbytes
        finally:
            load.end()
            published = load.published
            reader.end(published)
    print(
        f"{joined} subscribers, {n_stuck} stuck, {published} events: memory "
        f"{warm_nbytes >> 20} MiB at half time, {growth / 2**20:+.1f} MiB since; "
        f"the reader has {reader.came}, lost {reader.lost}"
    )
    assert growth < GROWTH_NBYTES, f"the publisher grew by {growth >> 20} MiB"
    assert reader.lost == 0
    assert reader.came == published


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--stuck", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zfs-") as folder:
        soak(options.subscribers, options.stuck, options.seed, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
