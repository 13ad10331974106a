"""Asking hubs how they are."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import zmq

from zfast import _core
from zfast.connection_monitor import ConnectionMonitor
from zfast.context import process_context
from zfast.errors import ProtocolError, RecvTimeoutError, WorkerError, ZfastError
from zfast.runner.hub_line import TOKEN_LOOK_S, HubAddress
from zfast.runner.remote_protocol import REMOTE_MESSAGES, AskStatus, Refuse, Status
from zfast.runner.runtime_folder import hub_sockets
from zfast.runner.status import HubStatus


def ask_status(address: HubAddress, timeout_s: float = 5.0) -> HubStatus:
    """Ask one hub.

    Raises:
        RecvTimeoutError: It does not answer.
        HandshakeError: It refuses our key, or is not who we trust.
        TokenError: It refuses our token.
        WorkerError: Our key may not look at it.
        ProtocolError: It answers as another version does.
    """
    asker = process_context().socket(zmq.DEALER)
    asker.linger = 0
    connection = ConnectionMonitor(asker)
    try:
        address.prepare(asker)
        until = time.monotonic() + timeout_s
        has_asked = False
        poller = zmq.Poller()
        poller.register(asker, zmq.POLLIN)
        poller.register(connection.socket, zmq.POLLIN)
        while (left_s := until - time.monotonic()) > 0:
            if not has_asked and address.connect(asker):
                has_asked = True
                _core.send_message(asker, *REMOTE_MESSAGES.encode(AskStatus()))
            poller.poll(int((left_s if has_asked else TOKEN_LOOK_S) * 1000) + 1)
            connection.read()
            address.check(connection)
            try:
                received = _core.recv(asker)
                if received is not None:
                    return _read(address, received)
            # msgspec raises two errors of Python's own: for text that is no UTF-8, and for depth.
            except (
                ProtocolError,
                msgspec.DecodeError,
                UnicodeDecodeError,
                RecursionError,
            ) as error:
                raise ProtocolError(
                    f"{address.url} does not answer as this zfast understands",
                    detail=str(error),
                    hint="if its flow runs with another version, ask with 'zfast status' of that",
                ) from error
        raise RecvTimeoutError(
            f"nothing at {address.url} answered in {timeout_s:g} s",
            hint="has a flow run with this endpoint submitted a task by now?",
        )
    finally:
        connection.close()
        asker.close(linger=0)


def ask_all(on_failure: Callable[[ZfastError], None], timeout_s: float = 2.0) -> list[HubStatus]:
    """Ask every hub of this user on this host that has a worker; those that answer.

    Args:
        on_failure: Called for each that answers and cannot be shown.
        timeout_s: How long each may take.
    """
    found = []
    for path in hub_sockets():
        try:
            found.append(ask_status(HubAddress(f"ipc://{path}"), timeout_s))
        except RecvTimeoutError:
            continue  # it has ended just now, or its folder was left behind
        except ZfastError as error:
            on_failure(error)
    return found


def _read(address: HubAddress, received: _core.Message | _core.Batch) -> HubStatus:
    if isinstance(received, _core.Batch):
        raise ProtocolError("a batch, not a hub's status")
    message = REMOTE_MESSAGES.decode(received.kind, received.body)
    if isinstance(message, Refuse):
        raise WorkerError(
            f"{address.url} does not tell us: {message.reason}",
            hint="a Viewer's key may look: 'zfast keys authorize KEY.pub --role Viewer'",
        )
    if not isinstance(message, Status) or not received.buffers:
        raise ProtocolError(f"{type(message).__name__}, not a hub's status")
    return msgspec.json.decode(received.buffers[0], type=HubStatus)
