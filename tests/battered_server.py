"""Every socket that zfast listens with, in one process, for tests that send what is not ours there.

Run with a key folder in ``ZFAST_KEYS``. Prints the endpoints as JSON; then, for each line that
comes in, "done" once a job has run.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import tempfile
import threading

from hub_jobs import Jobs
from zfast import Channel
from zfast.errors import ZfastError
from zfast.events.relay import Relay
from zfast.events.relay_link import relay_endpoints
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.security.server_security import ServerSecurity

#: Threads that looked something up to unpickle it.
unpickling: set[str] = set()


def watch(event: str, _: object) -> None:
    if event == "pickle.find_class":
        unpickling.add(threading.current_thread().name)


def double(argument: int, _: object) -> int:
    return argument * 2


def answer(rx: Channel) -> None:
    """Answer the first peer's questions; take what others say."""
    first = None
    while True:
        try:
            value = rx.recv()
            first = first or rx.peers[0]
            if value == "question":
                rx.send("answer", to=first, timeout=20)
        except ZfastError:
            pass


def main() -> None:
    faulthandler.enable()
    sys.addaudithook(watch)
    logging.disable(logging.WARNING)  # a line for each bad frame
    security = ServerSecurity.load("prod")
    rx = Channel.bind("tcp://127.0.0.1:*", security=security)
    relay = Relay("tcp://127.0.0.1:*", security=security)
    hub = Hub(
        # A host that is made up may be given the job, and is found out when it says nothing.
        Policy(1, lease_s=2.0, max_worker_deaths=1000),
        executor="hub_executor:FunctionExecutor",
        environment={},
        on_note=lambda *_: None,
        remote=RemoteEndpoint("tcp://127.0.0.1:*", security),
        versions={"zfast": "0"},
    )
    jobs = Jobs(hub)
    assert jobs.run(double, 1) == 2  # its local socket is there from now on
    threads = [
        threading.Thread(target=answer, args=(rx,), daemon=True),
        threading.Thread(target=relay.run, name="relay", daemon=True),
    ]
    for thread in threads:
        thread.start()
    control, events, publish = relay_endpoints(relay.endpoint)
    print(
        json.dumps(
            {
                "channel": rx.endpoint,
                "hub": hub._folder.endpoint,
                "remote": hub.endpoint,
                "relay": control,
                "relay events": events,
                "relay publish": publish,
            }
        ),
        flush=True,
    )
    for _ in sys.stdin:
        assert jobs.run(double, 2) == 4
        assert "zfast-hub" in {thread.name for thread in threading.enumerate()}
        # Who passes payloads on never looks into one.
        assert unpickling.isdisjoint({"zfast-hub", "relay", "zfast-gate"}), unpickling
        assert all(thread.is_alive() for thread in threads)
        print("done", flush=True)
    hub.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="zf") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        main()
