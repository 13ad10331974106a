"""The core in plain Python, over pyzmq's public API: what ``zfast._core`` is where that cannot be.

The names, the bytes on the wire and the errors are those of the compiled core; time and copies are
not. A plain and a compiled peer understand each other. There is no shared memory. ``_core.pyi``
says what each name does; the wire format is ``zfast._fallback``'s.
"""

from __future__ import annotations

import zmq

from zfast._fallback import FLAG_BATCH as FLAG_BATCH
from zfast._fallback import INLINE_MAX_NBYTES as INLINE_MAX_NBYTES
from zfast._fallback import WIRE_VERSION as WIRE_VERSION
from zfast._plain.accounts import MESSAGE_COST as MESSAGE_COST
from zfast._plain.accounts import Account as Account
from zfast._plain.accounts import Credit as Credit
from zfast._plain.frames import Batch as Batch
from zfast._plain.frames import Message as Message
from zfast._plain.frames import decode_message as decode_message
from zfast._plain.frames import pack as pack
from zfast._plain.frames import plan_batch as plan_batch
from zfast._plain.frames import unpack as unpack
from zfast._plain.receiving import recv as recv
from zfast._plain.sockets import FLAG_BYTES as FLAG_BYTES
from zfast._plain.sockets import POLLIN as POLLIN
from zfast._plain.sockets import POLLOUT as POLLOUT
from zfast._plain.sockets import poll as poll
from zfast._plain.sockets import send_batch as send_batch
from zfast._plain.sockets import send_message as send_message
from zfast._plain.sockets import send_value as send_value
from zfast._plain.streams import KIND_CHUNK as KIND_CHUNK
from zfast._plain.streams import Departure as Departure
from zfast._plain.streams import Landing as Landing
from zfast._plain.streams import pool_statistics as pool_statistics
from zfast._plain.tracker import SendTracker as SendTracker
from zfast._plain.tracker import lent_buffers as lent_buffers
from zfast._plain.turns import NOTHING as NOTHING
from zfast._plain.turns import Lane as Lane
from zfast._plain.turns import Turn as Turn

LIBZMQ_VERSION = zmq.zmq_version_info()


def limit_pool(nbytes: int) -> None:
    """There is no pool to limit."""


def trim_pool() -> None:
    """There is no pool to trim."""


def keep_heap_warm(nbytes: int) -> None:
    """The heap stays as the system has it."""
