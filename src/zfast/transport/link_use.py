"""LinkUse: a channel's link, for one thread at a time."""

from __future__ import annotations

from types import TracebackType

from zfast.errors import ChannelClosedError, ConfigError
from zfast.transport.link import Link


class LinkUse:
    """``with use as link:`` for the thread that uses the channel.

    A background thread of zfast's own – a batch writer's, the acknowledger – may come between two
    calls with `try_between`, and is waited for.

    Raises:
        ConfigError: On entry: another thread uses the channel.
        ChannelClosedError: On entry: the link is closed.
    """

    __slots__ = ("_turn", "link")

    def __init__(self, link: Link) -> None:
        self.link = link
        self._turn = link.turn

    def __enter__(self) -> Link:
        if not self._turn.enter():
            raise ConfigError(
                f"{self.link.endpoint}: two threads use the channel at once",
                hint="give each thread a channel of its own",
            )
        if self.link.closed:
            self._turn.leave()
            raise ChannelClosedError(f"{self.link.endpoint}: the channel is closed")
        return self.link

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._turn.leave()

    def try_enter(self) -> bool:
        """Enter, unless another thread uses the channel or it is closed. Then ``__exit__``."""
        if not self._turn.enter():
            return False
        if self.link.closed:
            self._turn.leave()
            return False
        return True

    def try_between(self) -> bool:
        """Come between two calls, unless one is under way. Then call `end_between`."""
        return self._turn.try_between()

    def end_between(self) -> None:
        """Let the next call begin."""
        self._turn.end_between()
