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

    A state that cannot be read is not taken: the last good one stays in force, and the log says so
    once for each change. So does a source that becomes unreadable.

    Args:
        on_state: Called with the new state, on this thread.
    """

    def __init__(self, source: ServerSource, on_state: Callable[[ServerState], None]) -> None:
        self._source = source
        self._on_state = on_state
        self._signature = source.signature()
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
            signature = self._source.signature()
            if signature == self._signature:
                return
            # Taken before the files are read: what changes meanwhile is seen the next time.
            self._signature = signature
            self._on_state(self._source.load())

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except ZfastError as error:
                record("reload failed", level=40, reason="not readable", detail=str(error))
            except Exception:
                with contextlib.suppress(Exception):
                    logger.exception("keys and policy could not be reloaded")
