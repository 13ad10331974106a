"""A worker process: an I/O thread that talks to the hub, and the main thread that runs jobs."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cloudpickle

from zfast import _core, _watchdog, arena
from zfast.codec import Payload
from zfast.errors import ArenaError, WorkerError
from zfast.runner import cycles
from zfast.runner.hub_connection import HubConnection
from zfast.runner.job import Blob
from zfast.runner.orders import Order, WarmUp
from zfast.runner.protocol import PROTOCOL_VERSION, Failed, Leaving, Note, Ready
from zfast.runner.slate import Slate
from zfast.sharing.handover import Parcel

logger = logging.getLogger("zfast.worker")

Notify = Callable[[str, bytes], None]


class Executor(Protocol):
    """What runs jobs; made once, in the worker's main thread.

    It is made with a function that sends notes, and one that names the memory of a buffer if that
    was received and can never change.
    """

    def run(self, code: Blob, context: Blob, parcels: list[Parcel], attempt: int) -> list[Payload]:
        """Run one job: its blobs and parcels in, the result's payloads out.

        Whatever it raises is told to the hub as the job's failure. In an ``attempt`` after the
        first, another worker has died of the job, and may have done any part of it.
        """
        ...

    def warm(self, codes: list[Blob], context: Blob) -> None:
        """Get ready for jobs of these codes in this context, which may never come."""
        ...

    def close(self) -> None:
        """Called once, before the worker ends in order; takes the time that it needs."""
        ...


def main(config_json: str) -> None:
    """Run a worker until the hub says stop. Called by the process's bootstrap code.

    Args:
        config_json: ``endpoint``, ``routing_id``, ``parent_pid``, ``runtime_folder``, ``executor``,
            ``segment_socket``, ``lifeline``, ``slate``, ``beat_s``, ``initializer``, ``main_file``.
    """
    config = json.loads(config_json)
    if config["main_file"]:
        sys.modules["__main__"].__file__ = config["main_file"]
    _watchdog.watch_parent(config["parent_pid"], config["runtime_folder"])
    if config["segment_socket"]:
        share_arrays()
    for fd in (config["lifeline"], config["slate"]):
        os.set_inheritable(fd, False)  # for its forks, not for what it runs
    slate = Slate(config["slate"])
    connection = HubConnection(
        config["endpoint"],
        config["routing_id"].encode(),
        config["segment_socket"],
        slate,
        config["beat_s"],
    )
    job_id = b""

    def notify(topic: str, data: bytes) -> None:
        connection.post(Note(job_id, topic), [data])

    try:
        executor = _prepare(config, connection, notify)
    except BaseException:
        connection.close()  # else its thread's end would drown the words about the cause
        raise
    leave_when_terminated(connection)
    connection.post(Ready(PROTOCOL_VERSION, os.getpid()))
    while (item := connection.orders.get()) is not None:
        if isinstance(item, WarmUp):
            executor.warm(item.codes, item.context)
        else:
            slate.begun = item.serial
            job_id = item.attempt[0]
            shared_nbytes = sum(parcel.shared_nbytes for parcel in item.parcels)
            shared_nbytes += _run_job(connection, executor, item)
            del item  # its payloads are not to outlive it while the worker waits
            cycles.job_done(shared_nbytes)
    slate.is_finishing = True
    executor.close()
    slate.is_finishing = False
    connection.close()


def _prepare(config: dict[str, Any], connection: HubConnection, notify: Notify) -> Executor:
    module_name, _, name = config["executor"].partition(":")
    executor: Executor = getattr(importlib.import_module(module_name), name)(
        notify, connection.leases.handover.identify
    )
    if config["initializer"]:
        function, arguments = cloudpickle.loads(Path(config["initializer"]).read_bytes())
        function(*arguments)
    cycles.modules_loaded()
    return executor


def leave_when_terminated(connection: HubConnection) -> None:
    """On SIGTERM finish what runs, and get no more jobs. A forked child ends, as ever."""
    pid = os.getpid()

    def handle(_: int, __: object) -> None:
        if os.getpid() == pid:
            connection.post(Leaving())
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)


def share_arrays() -> None:
    """Let NumPy allocate where other processes can read, if that can be had here."""
    try:
        arena.share_memory()
    except ArenaError as error:
        logger.warning("results are copied, not shared: %s", error)


def _sendable(text: str) -> str:
    """Text that can be encoded: a name of a file may hold what cannot."""
    return text.encode(errors="backslashreplace").decode()


def _run_job(connection: HubConnection, executor: Executor, order: Order) -> int:
    """Run a job and send its result; the bytes of it that are shared."""
    try:
        result = executor.run(order.code, order.context, order.parcels, order.attempt[1])
        done, buffers, parcels = connection.leases.pack(order.attempt, result)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt of a task end the task, not the worker.
        message = error.message if isinstance(error, WorkerError) else str(error)
        told = map(_sendable, (type(error).__name__, message, traceback.format_exc()))
        connection.post(Failed(order.attempt, *told))
        return 0
    # The next job may change what this one returned: the buffers must be out, or copied, by then.
    if any(len(buffer) >= _core.INLINE_MAX_NBYTES for buffer in buffers):
        connection.post_and_wait(done, buffers)
    else:
        connection.post(done, [bytes(buffer) for buffer in buffers])
    return sum(parcel.shared_nbytes for parcel in parcels)  # their leases are held until here
