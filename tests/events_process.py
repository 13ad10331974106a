"""A process that publishes what it is told to: a test's own publisher, to be killed.

python events_process.py FOLDER RELAY|-    then a line each: FLOW STATE FIRST LAST RATE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from zfast.events.event import StateEvent
from zfast.events.publisher import Publisher


def make_event(number: int, *, flow: str = "etl", state: str = "Running") -> StateEvent:
    types = {"Completed": "COMPLETED", "Failed": "FAILED"}
    return StateEvent(
        kind="task-run",
        environment="default",
        run_id=f"run-{number}",
        state_id=f"{flow}-{state}-{number}",
        state_type=types.get(state, "RUNNING"),
        state_name=state,
        state_ns=time.time_ns(),
        name="load",
        flow_name=flow,
    )


def main(folder: str, relay: str) -> None:
    with Publisher(folder=Path(folder), relay=None if relay == "-" else relay) as publisher:
        print(publisher.id.hex(), flush=True)
        for line in sys.stdin:
            flow, state, first, last, rate = line.split()
            start = time.perf_counter()
            for number in range(int(first), int(last)):
                publisher.publish(make_event(number, flow=flow, state=state))
                while int(rate) and time.perf_counter() - start < (number - int(first)) / int(rate):
                    time.sleep(0)
            print("published", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
