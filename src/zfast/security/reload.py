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
    once for each change. So does a source that becomes unreadable. Only revocations that can be
    read are taken all the same.

    Args:
        on_state: Called with the new state, on this thread.
        on_revoked: Called with the revoked keys when the state cannot be read.
    """

    def __init__(
        self,
        source: ServerSource,
        on_state: Callable[[ServerState], None],
        on_revoked: Callable[[frozenset[str]], None],
    ) -> None:
        self._source = source
        self._on_state = on_state
        self._on_revoked = on_revoked
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
            try:
                state = self._source.load()
            except Exception:
                self._on_revoked(self._source.load_revoked())
                raise
            self._on_state(state)

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
