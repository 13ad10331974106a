"""Lets a deployment go on only if the next run of a flow completes.

python gate_deployment.py FLOW [SECONDS]
"""

import sys

import zfast
from zfast.errors import RecvTimeoutError


def main(flow: str, seconds: float = 600.0) -> int:
    ends = ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]
    with zfast.subscribe(flows=[flow], kinds=["flow-run"], states=ends, snapshot=False) as events:
        print(f"waiting for a run of {flow}", flush=True)
        try:
            while not isinstance(event := events.recv(seconds), zfast.StateEvent):
                pass  # a gap: what came of the run follows it
        except RecvTimeoutError as error:
            print(error)
            return 1
    print(f"{event.run_name} is {event.state_name}")
    return 0 if event.state_type == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
