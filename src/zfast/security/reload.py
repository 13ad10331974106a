"""Keys and policy that changed on disk take effect without a restart."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from zfast.errors import ZfastError
from zfast.security.audit import logger, record
from zfast.security.sources import ServerSource, ServerState

#: How often the files are looked at. By their times and sizes: network filesystems and the
#: symbolic links of Kubernetes' mounts send no notice.
LOOK_EVERY_S = 0.5


class Reloader:
    """Looks at a source and tells of each new state, on a thread of its own.

    A state that cannot be read is not taken, and is tried again at each look: the last good one
    stays in force, and the log says so once for each change. So does a source that becomes
    unreadable. Only revocations that can be read are taken all the same.

    Args:
        signature: The source's before the state was loaded that is in force.
        on_state: Called with the new state, on this thread or that of ``look``.
        on_revoked: Called with the revoked keys when the state cannot be read.

    Attributes:
        signature: The source's before the last state was loaded that was taken.
    """

    def __init__(
        self,
        source: ServerSource,
        signature: tuple[object, ...],
        on_state: Callable[[ServerState], None],
        on_revoked: Callable[[frozenset[str]], None],
    ) -> None:
        self._source = source
        self.signature = signature
        #: That of a change which could not be read, and of which the log tells.
        self._failed: tuple[object, ...] | None = None
        self._on_state = on_state
        self._on_revoked = on_revoked
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="zfast-keys", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look now. Threads: any.

        Raises:
            ZfastError: The state cannot be read; the last good one stays in force.
        """
        with self._lock:
            # Taken before the files are read: what changes meanwhile is seen the next time.
            signature = self._source.signature()
            if signature == self.signature:
                self._failed = None
                return
            try:
                self._on_state(self._source.load())
            except Exception as error:
                if signature != self._failed:
                    self._failed = signature
                    _tell(error)
                self._on_revoked(self._source.load_revoked())
                raise
            # Not before: what failed for a moment only may change no signature when it is over.
            self.signature, self._failed = signature, None

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(Exception):  # the log has it
                self.look()
            self._stop.wait(LOOK_EVERY_S)


def _tell(error: Exception) -> None:
    if isinstance(error, ZfastError):
        record("reload failed", level=40, reason="not readable", detail=str(error))
    else:
        with contextlib.suppress(Exception):
            logger.error("keys and policy could not be reloaded", exc_info=error)
