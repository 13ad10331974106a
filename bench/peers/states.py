"""States of task runs on their way to another process.

Run: ``states driver`` with PREFECT_API_URL set runs flows of no-op tasks, their states broadcast;
``states zfast`` and ``states websocket`` listen, the one to zfast, the other to Prefect's events as
its server passes them on. ``states flood`` publishes made-up states, as fast as it is told to.
``states both`` runs tasks that are broadcast and tasks that are not, in turns; ``states stuck`` is
subscribers, for whoever wants to stop a process that should read.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.control import serve

#: Pending, Running, Completed.
STATES = 3
TIMEOUT_S = 60.0
#: Nothing new for so long, and no more will come: a server may drop what it cannot pass on in time.
QUIET_S = 10.0


def drive(command: dict[str, Any]) -> dict[str, Any]:
    """Run ``count`` tasks, ``rate`` transitions a second."""
    from prefect import flow, task

    from zfast import broadcast

    @task
    def noop(i: int) -> int:
        return i

    @flow
    def states(count: int, pause_s: float) -> None:
        start = time.perf_counter()
        for i in range(count):
            noop(i)
            time.sleep(max(0.0, start + (i + 1) * pause_s - time.perf_counter()))

    start = time.perf_counter()
    with broadcast(kinds=["task-run"]):
        states(command["count"], STATES / command["rate"])
    return {"rate": command["count"] * STATES / (time.perf_counter() - start)}


def run_both(command: dict[str, Any]) -> dict[str, Any]:
    """Run a flow of ``count`` tasks of which every other one is broadcast.

    The publisher is there for all, as it is in a process that broadcasts some of its flows.

    Returns:
        The median of a task's seconds, of those that were broadcast and of those that were not.
    """
    from prefect import flow, task

    from zfast import broadcast

    @task
    def noop(i: int) -> int:
        return i

    @flow
    def both() -> dict[str, float]:
        took: dict[str, list[float]] = {"broadcast": [], "not broadcast": []}
        told = broadcast()
        for i in range(command["count"]):
            is_told = i % 4 in (0, 3)
            if is_told:
                told.start()
            start = time.perf_counter()
            noop(i)
            took["broadcast" if is_told else "not broadcast"].append(time.perf_counter() - start)
            told.stop()
        return {name: median(seconds) for name, seconds in took.items()}

    return both()


def subscribe_many(command: dict[str, Any]) -> dict[str, Any]:
    """Have ``count`` subscribers that have all joined."""
    from zfast import subscribe

    subscribers.extend(subscribe() for _ in range(command["count"]))
    for subscriber in subscribers:
        subscriber.wait_joined()
    return {}


#: Of ``subscribe_many``: they live as long as the process.
subscribers: list[Any] = []


class Listener:
    """Collects how late states come. Reads on a thread of its own."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self._ready = threading.Event()
        self._more = threading.Condition()
        threading.Thread(target=self.listen, daemon=True).start()
        if not self._ready.wait(TIMEOUT_S):
            raise RuntimeError("it cannot listen")

    def collect(self, count: int) -> list[float]:
        """Wait until so many came, or no more do; those, and forget them."""
        with self._more:
            while (came := len(self.late_ms)) < count:
                if not self._more.wait_for(lambda: len(self.late_ms) > came, QUIET_S):
                    break
            heard, self.late_ms = self.late_ms, []
        if not heard:
            raise RuntimeError(f"none of {count} states came")
        return heard

    def came(self, late_ms: float) -> None:
        with self._more:
            self.late_ms.append(late_ms)
            self._more.notify()

    def ready(self) -> None:
        self._ready.set()

    def listen(self) -> None:
        raise NotImplementedError


class ZfastListener(Listener):
    """To zfast."""

    def listen(self) -> None:
        from zfast import StateEvent, subscribe

        with subscribe(kinds=["task-run"]) as events:
            self.ready()
            for event in events:
                if isinstance(event, StateEvent):
                    self.came((time.time_ns() - event.state_ns) / 1e6)


class WebsocketListener(Listener):
    """To Prefect's server."""

    def listen(self) -> None:
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        from prefect.events.clients import get_events_subscriber
        from prefect.events.filters import EventFilter, EventNameFilter

        wanted = EventFilter(event=EventNameFilter(prefix=["prefect.task-run."]))
        async with get_events_subscriber(filter=wanted) as subscriber:
            self.ready()
            async for event in subscriber:
                self.came(time.time() * 1e3 - event.occurred.timestamp() * 1e3)


def flood(command: dict[str, Any]) -> dict[str, Any]:
    """Publish ``count`` events at ``rate`` a second; microseconds that a call took."""
    from zfast.events.event import StateEvent
    from zfast.events.publisher import Publisher

    count, rate = command["count"], command["rate"]
    with Publisher(folder=Path(command["folder"])) as publisher:
        spent = 0.0
        start = time.perf_counter()
        for i in range(count):
            event = StateEvent(
                kind="task-run",
                environment="default",
                run_id=f"{i:036}",
                state_id=f"{i:036}",
                state_type="RUNNING",
                state_name="Running",
                state_ns=time.time_ns(),
                run_name=f"noop-{i}",
                name="noop",
                flow_name="flood",
            )
            before = time.perf_counter()
            publisher.publish(event)
            spent += time.perf_counter() - before
            while time.perf_counter() - start < i / rate:
                time.sleep(0)
        took = time.perf_counter() - start
    return {"call_us": spent / count * 1e6, "rate": count / took}


def drink(command: dict[str, Any]) -> dict[str, Any]:
    """Read a flood to its end; how many events came, and how many were told to be missing."""
    from zfast import subscribe
    from zfast.events.event import Gap, PublisherLeft, StateEvent

    came = lost = 0
    with subscribe(folder=Path(command["folder"]), membership=True) as events:
        (Path(command["folder"]) / "listening").touch()
        for event in events:
            came += isinstance(event, StateEvent)
            lost += event.lost if isinstance(event, Gap) else 0
            if isinstance(event, PublisherLeft):
                return {"came": came, "lost": lost}
    return {}


def main() -> None:
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    what = sys.argv[1]
    answers = {"driver": drive, "flood": flood, "drink": drink, "stuck": subscribe_many}
    if what in answers:
        serve(answers[what], pid=os.getpid())
        return
    if what == "both":
        from zfast import broadcast

        with broadcast(flows=["another"]):
            serve(run_both)
        return
    listener: Any = None

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        nonlocal listener
        if "count" not in command:
            listener = ZfastListener() if what == "zfast" else WebsocketListener()
            return {}
        late = sorted(listener.collect(command["count"]))
        return {
            "median_ms": late[len(late) // 2],
            "p99_ms": late[int(len(late) * 0.99)],
            "arrived": len(late) / command["count"],
        }

    serve(answer)


if __name__ == "__main__":
    main()
