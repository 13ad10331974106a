"""Random graphs of tasks over three hosts, whose workers and hosts are killed: is all right?

    python tests/soak_direct.py [--rounds 20] [--tasks 60] [--seed 1] [--network]

Each round is a flow. It keeps some of its futures, and lets the others go as soon as they are
submitted; what it keeps is compared with what it must be. Meanwhile workers and hosts are killed,
and hosts drained, at random. In the end no process, descriptor, lease or publication is left.

With ``--network`` each host has a network of its own, and lines between them are cut too; that
needs root and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.context import FlowRunContext

from direct_jobs import MIB, numbers
from foremen import ZFAST, free_port, gone, importing_tests, shared_nbytes
from hub_jobs import STORM_DEATHS, Journal, settled
from network_hosts import WAIT_FOR_API, SwitchedHosts, switched_hosts
from zfast import ZfastTaskRunner, arena
from zfast.security.key_folder import KeyFolder
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

N_HOSTS = 3
LEASE_S = 3.0
#: A result is made again so often only.
MAX_LOST_HOSTS = 3
FAULT_EVERY_S = (0.2, 2.0)
#: So long a line is cut: less than a lease.
CUT_S = 1.0
#: Faults by how often they happen, those of the network last.
FAULTS = {"workers killed": 4, "hosts killed": 3, "hosts drained": 1, "hosts parted": 3,
          "hosts unplugged": 2}  # fmt: skip
N_LOCAL_FAULTS = 3


@dataclass(frozen=True)
class Node:
    """One task: what it makes, of what, and how long it takes."""

    seed: int
    nbytes: int
    inputs: tuple[int, ...]
    duration_s: float


def random_graph(n_tasks: int, chance: random.Random) -> list[Node]:
    nodes = []
    for number in range(n_tasks):
        n_inputs = min(number, chance.choice([0, 1, 1, 2, 2, 3]))
        recent = range(max(0, number - 12), number)
        nodes.append(
            Node(
                seed=chance.randrange(1 << 20),
                nbytes=8 * (int(10 ** chance.uniform(4, 7)) // 8),
                inputs=tuple(chance.sample(recent, n_inputs)),
                duration_s=chance.choice([0, 0, 0.1, 1]),
            )
        )
    return nodes


def shifts(nodes: list[Node]) -> list[int]:
    """What the inputs of each task add to each of its numbers."""
    totals: list[int] = []
    found = []
    with np.errstate(over="ignore"):
        for node in nodes:
            shift = np.array([totals[i] for i in node.inputs], dtype=np.int64).sum()
            found.append(shift)
            totals.append((numbers(node.seed, node.nbytes) + shift).sum())
    return found


@task
def work(node: Node, inputs: list[Any], journal: Journal, number: int) -> Any:
    journal.note(str(number), "begin")
    time.sleep(node.duration_s)
    shift = np.array([each.sum() for each in inputs], dtype=np.int64).sum()
    return numbers(node.seed, node.nbytes) + shift


class Hosts:
    """Foremen, each on a host of its own: always three of them, one or the other just starting."""

    def __init__(self, endpoint: str, network: SwitchedHosts | None) -> None:
        self.network = network
        self._endpoint = endpoint
        self._foremen: dict[int, subprocess.Popen[str]] = {}
        self._pids: set[int] = set()
        for number in range(N_HOSTS):
            self._start(number)

    def _start(self, number: int) -> None:
        command = [*ZFAST, "worker", self._endpoint, "--workers", "2", "--key", "worker-1"]
        if self.network is not None:
            command = ["ip", "netns", "exec", self.network.clients[number], *command]
        self._foremen[number] = subprocess.Popen(
            command, env=importing_tests(), stdout=subprocess.DEVNULL, text=True
        )

    def kill_worker(self, hub: Any, chance: random.Random) -> bool:
        workers = [worker.pid for worker in hub._remote if worker.available]
        if not workers:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
        return True

    def note_workers(self, hub: Any) -> None:
        self._pids.update(worker.pid for worker in hub._remote)

    def has_joined(self, hub: Any, number: int) -> bool:
        """Whether a host is past its start, where it ends at once when it is to be drained."""
        pid = self._foremen[number].pid
        return any(host.name.endswith(f":{pid}") for host in hub._remote.hosts)

    def end(self, number: int, how: signal.Signals) -> None:
        """Kill a host, or drain it; another takes its place."""
        foreman = self._foremen[number]
        foreman.send_signal(how)
        status = foreman.wait(60)
        assert status == (0 if how == signal.SIGTERM else -how), status
        self._start(number)

    def shared_nbytes(self) -> int:
        return shared_nbytes(*(foreman.pid for foreman in self._foremen.values()))

    def drain(self) -> None:
        """End them well; nothing of them is left."""
        for foreman in self._foremen.values():
            foreman.terminate()
        for foreman in self._foremen.values():
            assert foreman.wait(60) in (0, -signal.SIGTERM)  # one may just have started
        settled(lambda: all(gone(pid) for pid in self._pids))

    def close(self) -> None:
        """End those that are still there at once."""
        for foreman in self._foremen.values():
            foreman.kill()
            foreman.wait()


class Faults:
    """What goes wrong during one round, from a thread of its own."""

    def __init__(self, hosts: Hosts, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._hosts = hosts
        self._chance = chance
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._hub: Any = None
        self._thread = threading.Thread(target=self._run)

    def __reduce__(self) -> Any:
        # A flow is pickled for its workers, with its parameters: these are not for them.
        return str, ("stays with the driver",)

    def begin(self, hub: Any) -> None:
        self._hub = hub
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        for error in self._errors:
            raise error

    def _run(self) -> None:
        try:
            while not self._over.wait(self._chance.uniform(*FAULT_EVERY_S)):
                self._hosts.note_workers(self._hub)
                self._cause()
        except BaseException as error:
            self._errors.append(error)

    def _cause(self) -> None:
        network = self._hosts.network
        known = len(FAULTS) if network is not None else N_LOCAL_FAULTS
        (fault,) = self._chance.choices(list(FAULTS)[:known], list(FAULTS.values())[:known])
        number, other = self._chance.sample(range(N_HOSTS), 2)
        if fault == "workers killed":
            if not self._hosts.kill_worker(self._hub, self._chance):
                return
        elif fault == "hosts killed":
            if self.counts[fault] == MAX_LOST_HOSTS:
                return
            self._hosts.end(number, signal.SIGKILL)
        elif fault == "hosts drained":
            if not self._hosts.has_joined(self._hub, number):
                return
            self._hosts.end(number, signal.SIGTERM)
        elif network is not None:
            parted = network.clients[number], network.clients[other]
            if fault == "hosts parted":
                network.part(*parted)
                time.sleep(CUT_S)
                network.unite(*parted)
            else:
                network.unplug(parted[0])
                time.sleep(CUT_S)
                network.plug(parted[0])
        self.counts[fault] += 1


@flow(persist_result=False)
def run_graph(nodes: list[Node], kept: set[int], journal: Journal, faults: Faults) -> int:
    """How many results were read, all of them right."""
    last_use = {i: number for number, node in enumerate(nodes) for i in node.inputs}
    futures: dict[int, Any] = {}
    for number, node in enumerate(nodes):
        inputs = [futures[i] for i in node.inputs]
        futures[number] = work.submit(node, inputs, journal, number)
        if number == len(nodes) // 4:
            futures[number].wait()  # now there is something to lose
            faults.begin(FlowRunContext.get().task_runner._hub)  # type: ignore[union-attr]
        for i in node.inputs:
            if last_use[i] == number and i not in kept:
                del futures[i]
        del inputs
    expected = shifts(nodes)
    for number in sorted(kept):
        value = futures[number].result()
        right = numbers(nodes[number].seed, nodes[number].nbytes) + expected[number]
        assert np.array_equal(value, right), f"task {number} came out wrong"
    return len(kept)


def one_round(runner: ZfastTaskRunner, hosts: Hosts, n_tasks: int, seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    nodes = random_graph(n_tasks, chance)
    used = {i for node in nodes for i in node.inputs}
    kept = {i for i in range(n_tasks) if i not in used or chance.random() < 0.2}
    journal, faults = Journal(folder / f"round-{seed}"), Faults(hosts, chance)
    began = time.monotonic()
    try:
        n_read = run_graph.with_options(task_runner=runner)(nodes, kept, journal, faults)
    finally:
        faults.end()
    begun = Counter(key for key, what, *_ in journal.lines() if what == "begin")
    assert set(begun) == {str(number) for number in range(n_tasks)}
    happened = ", ".join(f"{n} {what}" for what, n in faults.counts.items()) or "nothing happened"
    print(
        f"seed {seed}: {n_tasks} tasks, begun {sum(begun.values())} times, {n_read} results right "
        f"in {time.monotonic() - began:.0f} s; {happened}; the hosts share "
        f"{hosts.shared_nbytes() / MIB:.0f} MiB",
        flush=True,
    )


def soak(n_rounds: int, n_tasks: int, seed: int, network: SwitchedHosts | None = None) -> None:
    """Run it; AssertionError if anything is wrong or left."""
    address = "127.0.0.1" if network is None else network.server_address(0)
    with tempfile.TemporaryDirectory(prefix="zfs-") as name:
        os.environ["ZFAST_KEYS"] = f"{name}/keys"
        keys = KeyFolder(Path(name, "keys"))
        keys.new("default", "server")
        pair = keys.new("default", "worker-1").pair
        keys.authorize(pair.public, "worker-1", Role.WORKER, "default")
        with contextlib.closing(ServerSecurity.load()) as security:
            runner = ZfastTaskRunner(
                0,
                endpoint=f"tcp://{address}:{free_port()}",
                security=security,
                lease_s=LEASE_S,
                max_worker_deaths=STORM_DEATHS,
            )
            endpoint = str(runner._joining["endpoint"])
            with contextlib.closing(Hosts(endpoint, network)) as hosts:
                n_files = 0
                for number in range(n_rounds):
                    one_round(runner, hosts, n_tasks, seed + number, Path(name))
                    gc.collect()
                    n_files = n_files or len(os.listdir("/proc/self/fd"))  # Prefect's stay
                gc.collect()
                settled(lambda: arena.statistics().n_publications == 0)
                assert len(os.listdir("/proc/self/fd")) <= n_files + 16
                hosts.drain()


def soak_network(arguments: list[str]) -> int:
    """Run this program, and a Prefect server, on a host among others."""
    with switched_hosts(N_HOSTS) as network, contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="zfs-"))
        url = f"http://{network.server_address(0)}:4200/api"
        server = network.start(
            network.server,
            *("-m", "prefect", "server", "start", "--host", "0.0.0.0", "--port", "4200"),
            PREFECT_HOME=home,
            PREFECT_API_URL="",
            PREFECT_LOGGING_SERVER_LEVEL="ERROR",
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        assert network.start(network.server, "-c", WAIT_FOR_API, url).wait(90) == 0
        command = (__file__, *arguments, "--inside", pickle.dumps(network).hex())
        environment = {**importing_tests(), "PREFECT_HOME": home, "PREFECT_API_URL": url}
        driver = subprocess.Popen(
            ["ip", "netns", "exec", network.server, sys.executable, *command], env=environment
        )
        return driver.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    run = partial(soak, arguments.rounds, arguments.tasks, arguments.seed)
    if arguments.inside:
        run(pickle.loads(bytes.fromhex(arguments.inside)))
    elif arguments.network:
        return soak_network(sys.argv[1:])
    else:
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=60):
            run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
