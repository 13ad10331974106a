"""BatchWriter: small payloads, gathered into batches as they come, that never wait when idle."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from zfast.errors import ConfigError, ZfastError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer, Self

DEFAULT_MAX_NBYTES = 256 * 1024
DEFAULT_MAX_COUNT = 4096
DEFAULT_MAX_DELAY_US = 200
#: The most that one batch may hold.
MAX_NBYTES = 1 << 20
MAX_COUNT = 65536
#: When the peer had no room, or the channel was in use, at the end of the delay.
TRY_AGAIN_S = 0.001


class Transmit(Protocol):
    """Sends payloads, in order."""

    def __call__(self, payloads: list[bytes], *, timeout: float | None) -> None:
        """Send all of them, waiting for room; raises as ``Channel.send_many``."""


class TryTransmit(Protocol):
    """Sends the payloads of one batch if it need not wait."""

    def __call__(self, payloads: list[bytes]) -> bool:
        """Send all of them, or none and return False."""


class BatchWriter:
    """Gathers payloads into batches. Made by ``Channel.batching``, which has the rules.

    Threads: the channel's. A thread of the writer's own sends what the delay has ended for.
    """

    def __init__(
        self,
        transmit: Transmit,
        try_transmit: TryTransmit,
        *,
        max_nbytes: int = DEFAULT_MAX_NBYTES,
        max_count: int = DEFAULT_MAX_COUNT,
        max_delay_us: float = DEFAULT_MAX_DELAY_US,
        timeout: float | None = None,
    ) -> None:
        for name, value, limit in (
            ("max_nbytes", max_nbytes, MAX_NBYTES),
            ("max_count", max_count, MAX_COUNT),
        ):
            if not isinstance(value, int) or not 1 <= value <= limit:
                raise ConfigError(f"{name} must be a whole number from 1 to {limit}, not {value!r}")
        if not isinstance(max_delay_us, (int, float)) or not max_delay_us >= 0:
            raise ConfigError(f"max_delay_us is microseconds from 0 on, not {max_delay_us!r}")
        self._transmit = transmit
        self._try_transmit = try_transmit
        self._max_nbytes = max_nbytes
        self._max_count = max_count
        self._max_delay_s = max_delay_us / 1e6
        self._timeout = timeout
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._nbytes = 0
        self._due = 0.0
        self._error: ZfastError | None = None
        self._ended = threading.Event()
        self._armed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """True after ``close`` or ``abort``."""
        return self._ended.is_set()

    def send(self, payload: Buffer) -> None:
        """Send one bytes-like payload, now or within the delay. Anything but ``bytes`` is copied.

        Raises:
            SendTimeoutError, ChannelClosedError, TransportError: As ``Channel.send_many``; also
                for payloads that were taken before, which are then dropped.
        """
        data = payload if type(payload) is bytes else memoryview(payload).tobytes()
        with self._lock:
            self._raise_if_unusable()
            if self._pending and self._nbytes + len(data) > self._max_nbytes:
                self._send_pending(self._timeout)
            self._pending.append(data)
            self._nbytes += len(data)
            if (
                self._nbytes >= self._max_nbytes
                or len(self._pending) >= self._max_count
                or time.monotonic() >= self._due
            ):
                self._send_pending(self._timeout)
            elif len(self._pending) == 1:
                self._arm()

    def flush(self, *, timeout: float | None = None) -> None:
        """Send what is gathered, waiting up to ``timeout`` seconds for room. Raises as ``send``."""
        with self._lock:
            self._raise_error()
            if self._pending:
                self._send_pending(timeout)

    def close(self) -> None:
        """Send what is gathered and end. Raises as ``send``. A second call does nothing."""
        try:
            if not self.closed:
                self.flush(timeout=self._timeout)
        finally:
            self.abort()

    def abort(self) -> None:
        """End at once; what is gathered is dropped."""
        self._ended.set()
        self._armed.set()
        if self._thread is not None:
            self._thread.join()
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def _send_pending(self, timeout: float | None) -> None:
        batch, self._pending, self._nbytes = self._pending, [], 0
        self._transmit(batch, timeout=timeout)
        self._due = time.monotonic() + self._max_delay_s

    def _raise_if_unusable(self) -> None:
        if self.closed:
            raise ConfigError("the batch writer is closed", hint="make one with channel.batching()")
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _arm(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._send_late, name="zfast-batch-writer", daemon=True
            )
            self._thread.start()
        self._armed.set()

    def _send_late(self) -> None:
        """Send what waits when its delay ends and no later call has sent it."""
        while True:
            self._armed.wait()
            if self._ended.wait(max(0.0, self._due - time.monotonic())):
                return
            with self._lock:
                if self._pending and time.monotonic() >= self._due:
                    self._try_to_send_pending()
                if not self._pending and not self.closed:
                    self._armed.clear()

    def _try_to_send_pending(self) -> None:
        try:
            sent = self._try_transmit(self._pending)
        except ZfastError as error:
            # Nobody is here to tell: the next call does.
            self._error, sent = error, True
        now = time.monotonic()
        if sent:
            self._pending, self._nbytes = [], 0
            self._due = now + self._max_delay_s
        else:
            self._due = now + TRY_AGAIN_S
