"""The fast path for data in Prefect flows.

Importing zfast is light and opens nothing; Prefect is imported when a Prefect name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfast._core import Batch as Batch
    from zfast._core import SendTracker as SendTracker
    from zfast.arena import share_memory as share_memory
    from zfast.channel import Channel as Channel
    from zfast.errors import ZfastError as ZfastError
    from zfast.events.event import Gap as Gap
    from zfast.events.event import StateEvent as StateEvent
    from zfast.events.reactions import on_event as on_event
    from zfast.events.reactions import wait_for_state as wait_for_state
    from zfast.events.reactions import when as when
    from zfast.events.subscription import subscribe as subscribe
    from zfast.prefect.broadcasting import broadcast as broadcast
    from zfast.prefect.locking import ZfastLocks as ZfastLocks
    from zfast.prefect.serializer import ZfastSerializer as ZfastSerializer
    from zfast.prefect.storage import ZfastStorage as ZfastStorage
    from zfast.prefect.task_runner import ZfastTaskRunner as ZfastTaskRunner

__version__ = "0.1.0"

_HOMES = {
    "Batch": "zfast._core",
    "Channel": "zfast.channel",
    "Gap": "zfast.events.event",
    "SendTracker": "zfast._core",
    "StateEvent": "zfast.events.event",
    "ZfastError": "zfast.errors",
    "ZfastLocks": "zfast.prefect.locking",
    "ZfastSerializer": "zfast.prefect.serializer",
    "ZfastStorage": "zfast.prefect.storage",
    "ZfastTaskRunner": "zfast.prefect.task_runner",
    "broadcast": "zfast.prefect.broadcasting",
    "on_event": "zfast.events.reactions",
    "share_memory": "zfast.arena",
    "subscribe": "zfast.events.subscription",
    "wait_for_state": "zfast.events.reactions",
    "when": "zfast.events.reactions",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name in ("_core", "_arena", "_watchdog"):  # every import in zfast comes by here first
        module: object = importlib.import_module("zfast._binding").load(name)
        globals()[name] = module
        return module
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'zfast' has no attribute {name!r}")
    if home == "zfast._core":
        return getattr(__getattr__("_core"), name)
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "prefect":
            raise ImportError(
                f"zfast.{name} needs Prefect: pip install 'zfast[prefect]'"
            ) from error
        raise
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
