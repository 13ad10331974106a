"""Runs something within milliseconds of a task's failure, while its flow still runs."""

import threading
import time

from prefect import flow, task

import zfast


@task
def load(part: int) -> None:
    if part == 3:
        raise ValueError("part 3 is bad")


@flow
def etl() -> None:
    for part in range(5):
        load.submit(part).wait()
        time.sleep(0.1)


def main() -> None:
    reacted = threading.Event()

    def react(event: zfast.StateEvent) -> None:
        late_ms = (time.time_ns() - event.state_ns) / 1e6
        print(f"{event.run_name} is {event.state_name}, {late_ms:.1f} ms ago: {event.message}")
        reacted.set()

    failure = zfast.when(flow="etl", task="load", state=["FAILED", "CRASHED"])
    with failure.run(react), zfast.broadcast():
        etl(return_state=True)
        reacted.wait(5)


if __name__ == "__main__":
    main()
