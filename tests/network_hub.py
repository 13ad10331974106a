"""A hub and its foremen on hosts of their own, at a switch; a test says from outside what they do.

    python tests/network_hub.py POLICY

runs the hub: it prints its endpoint, then what each function returns that it reads from its
standard input; both are pickled, as a line of hexadecimal digits.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from pathlib import Path

import cloudpickle

from direct_jobs import is_right, make, take
from foremen import ZFAST, importing_tests, joined, lost, worker_pids
from hub_jobs import Jobs, only, run_by, settled
from zfast.codec import decode
from zfast.runner.hub import Hub
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.security.server_security import ServerSecurity


class NetworkHub:
    """A hub on the server's host, which keeps the last result that was made.

    Args:
        network: With hosts at a switch.
        folder: That the jobs may write to.
        policy: The hub's.
    """

    def __init__(self, network, folder, **policy):
        self.network = network
        self._folder = folder
        self._policy = {"max_workers": 0, "lease_s": 60.0, **policy}
        self._foremen = {}
        self._stack = contextlib.ExitStack()
        self._n_workers = 0

    def __enter__(self):
        self._hub = self._start(self.network.server, __file__, json.dumps(self._policy))
        port = self._hub.stdout.readline().strip().rpartition(":")[2]
        self._endpoint = f"tcp://{self.network.server_address(0)}:{port}"
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _start(self, host, *command):
        process = self._stack.enter_context(self.network.start(host, *command, **importing_tests()))
        self._stack.callback(process.kill)
        return process

    def join(self, client, workers=1):
        """Have the workers of a client's host join."""
        options = ("--workers", str(workers), "--key", "worker-1")
        self._foremen[client] = self._start(client, *ZFAST[1:], "worker", self._endpoint, *options)
        self._n_workers += workers
        self._do(_wait_joined, self._n_workers)

    def kill(self, client):
        """End a client's foreman at once, and its workers with it."""
        self._foremen[client].kill()

    def lost(self, client):
        """Wait until a client's host counts as lost."""
        self._do(_wait_lost, self._foremen[client].pid)

    def make(self, client, *what):
        """Have a host make a result: journal, key, seed and nbytes."""
        self._do(_make, self._foremen[client].pid, self._folder, what)

    def take(self, client, *what):
        """Whether it comes right to a host, the only one that may take it."""
        return self._do(_take, self._foremen[client].pid, self._folder, what)

    @contextlib.contextmanager
    def taking(self, client, *what):
        """A host is on its way to take it; what is yielded waits, and says whether it is right."""
        self._ask(_take_there_first, self._foremen[client].pid, self._folder, what)
        yield self._answer

    def read(self, seed, nbytes):
        """Whether it comes right to the hub's own process."""
        return self._do(_read, seed, nbytes)

    def _do(self, function, *arguments):
        self._ask(function, *arguments)
        return self._answer()

    def _ask(self, function, *arguments):
        self._hub.stdin.write(cloudpickle.dumps((function, arguments)).hex() + "\n")
        self._hub.stdin.flush()

    def _answer(self):
        answer = pickle.loads(bytes.fromhex(self._hub.stdout.readline()))
        if isinstance(answer, Exception):
            raise answer
        return answer


# ---- what the hub's process does --------------------------------------------------------------


def _wait_joined(jobs, n_workers):
    joined(jobs, n_workers)


def _wait_lost(jobs, foreman_pid):
    lost(jobs, foreman_pid)


def _make(jobs, foreman_pid, folder, what):
    jobs.kept = run_by(jobs, worker_pids(jobs, foreman_pid), folder, make, what)


def _take(jobs, foreman_pid, folder, what):
    pids = worker_pids(jobs, foreman_pid)
    return decode(run_by(jobs, pids, folder, take(*what), jobs.kept).open())


def _take_there_first(jobs, foreman_pid, folder, what):
    pids = worker_pids(jobs, foreman_pid)
    with only(jobs, pids, folder):
        outcome = jobs.submit(take(*what), jobs.kept)
        settled(lambda: pids & _busy_pids(jobs))
    return jobs.value(outcome)  # of another host, should this one be lost


def _busy_pids(jobs):
    return {worker.pid for worker in jobs.hub._remote if jobs.hub._dispatcher.is_busy(worker)}


def _read(jobs, seed, nbytes):
    return is_right(decode(jobs.kept.open()), seed, nbytes)


def main(policy):
    jobs = Jobs(
        Hub(
            Policy(**json.loads(policy)),
            executor="hub_executor:FunctionExecutor",
            environment={},
            on_note=lambda *_: None,
            remote=RemoteEndpoint("tcp://0.0.0.0:*", ServerSecurity.load()),
        )
    )
    print(jobs.hub.endpoint, flush=True)
    for line in sys.stdin:
        function, arguments = pickle.loads(bytes.fromhex(line))
        try:
            answer = function(jobs, *arguments)
        except Exception as error:
            answer = error
        print(pickle.dumps(answer).hex(), flush=True)
    jobs.hub.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1])
