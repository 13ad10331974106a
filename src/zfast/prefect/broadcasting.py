"""``broadcast()``, and the setting ``ZFAST_BROADCAST``: which states are broadcast, and when."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
from prefect.flows import Flow

from zfast.errors import ConfigError
from zfast.prefect.broadcast_options import BroadcastOptions
from zfast.prefect.state_tap import BROADCAST_VARIABLE, process_tap

if TYPE_CHECKING:
    from typing_extensions import Self

_OFF = frozenset({"", "0", "false", "no", "off"})
_ON = frozenset({"1", "true", "yes", "on"})

F = TypeVar("F", bound=Flow[..., Any])


class Broadcast:
    """Broadcasting, from ``start`` to ``stop``. A context manager, and a decorator of flows.

    It is the process's: while it lasts, what runs on any of its threads, and in the workers that it
    starts, is broadcast. Threads: any.
    """

    def __init__(self, options: BroadcastOptions) -> None:
        self.options = options

    def start(self) -> None:
        """Begin; a second call does nothing."""
        process_tap.add(self.options)

    def stop(self) -> None:
        """End, once subscribers that live have everything; a second call does nothing."""
        process_tap.discard(self.options)

    def __call__(self, flow: F) -> F:
        """Broadcast a flow's runs, now and later; the flow itself is returned, unchanged."""
        if not isinstance(flow, Flow):
            raise ConfigError(
                f"broadcast is for a flow, not for {flow!r}", hint="put it above @flow"
            )
        options = msgspec.structs.replace(self.options, flows=(*self.options.flows, flow.name))
        Broadcast(options).start()
        if not process_tap.works:
            _add_hooks(flow)
        return flow

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@overload
def broadcast(flow: F, /) -> F: ...


@overload
def broadcast(
    *,
    environment: str | None = None,
    flows: Sequence[str] = (),
    kinds: Sequence[str] = (),
    states: Sequence[str] = (),
    endpoint: str | None = None,
    key: str = "client",
    insecure: bool = False,
) -> Broadcast: ...


def broadcast(flow: Any = None, /, **options: Any) -> Any:
    """Say the states of runs the moment they change, to whoever subscribes.

    ``with broadcast():`` around a flow's call, ``@broadcast`` or ``@broadcast(states=["FAILED"])``
    above ``@flow``; or ``ZFAST_BROADCAST=1`` in the environment, which needs no change of the flow.

    Args:
        flow: When it is used as a decorator without arguments.
        options: See ``BroadcastOptions``.

    Raises:
        ConfigError: An option is wrong.
    """
    for name in ("flows", "kinds", "states"):
        if isinstance(options.get(name), str):
            raise ConfigError(f"{name} is a list of strings, not the string {options[name]!r}")
        if name in options:
            options[name] = tuple(options[name])
    made = Broadcast(BroadcastOptions(**options))
    return made if flow is None else made(flow)


def broadcast_as_set() -> None:
    """Begin to broadcast if ``ZFAST_BROADCAST`` says so: for the import of ``zfast.prefect``.

    Raises:
        ConfigError: The setting is neither a switch nor options as JSON.
    """
    for options in _read_setting(os.environ.get(BROADCAST_VARIABLE, "")):
        Broadcast(options).start()


def _read_setting(text: str) -> list[BroadcastOptions]:
    if text.casefold() in _OFF:
        return []
    if text.casefold() in _ON:
        return [BroadcastOptions()]
    try:
        read = msgspec.json.decode(text.encode(), type=BroadcastOptions | list[BroadcastOptions])
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{BROADCAST_VARIABLE} is neither a switch nor options as JSON: {error}",
            hint=f"{BROADCAST_VARIABLE}=1, or such as "
            f'{BROADCAST_VARIABLE}=\'{{"flows": ["etl"], "states": ["FAILED"]}}\'',
        ) from error
    return read if isinstance(read, list) else [read]


def _add_hooks(flow: Flow[..., Any]) -> None:
    """The supported way, which knows fewer states and none of tasks."""
    add: Any
    for add in (
        flow.on_running, flow.on_completion, flow.on_failure, flow.on_cancellation, flow.on_crashed
    ):  # fmt: skip
        add(process_tap.on_flow_state)
