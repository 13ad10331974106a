"""How the workers of a flow fare, told once a second to whoever subscribes to it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from prefect.context import FlowRunContext

from zfast.errors import ZfastError
from zfast.prefect.state_tap import process_tap
from zfast.runner.hub import Hub

if TYPE_CHECKING:
    from zfast.runner.statistics import ProcessStatistics

TELL_S = 1.0


class WorkerVitals:
    """Tells of a hub's processes while states are broadcast; made where the flow runs.

    Threads: any. Its own does nothing while nothing is broadcast.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        context = FlowRunContext.get()
        flow, run = (context.flow, context.flow_run) if context is not None else (None, None)
        self._flow_name = flow.name if flow is not None else ""
        self._flow_run_id = str(run.id) if run is not None else ""
        self._known: dict[int, ProcessStatistics] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zfast-vitals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell that they are gone, and no more; before the hub is closed."""
        self._ended.set()
        self._thread.join()
        self._take([])

    def _run(self) -> None:
        while not self._ended.wait(TELL_S):
            if process_tap.is_active:
                try:
                    self._hub.statistics(self._take)
                except ZfastError:  # it has ended
                    return

    def _take(self, processes: list[ProcessStatistics]) -> None:
        now = {each.pid: each for each in processes}
        gone = [each._replace(state="Gone") for each in self._known.values() if each.pid not in now]
        self._known = now
        for each in [*processes, *gone]:
            process_tap.tell_worker(each, self._flow_name, self._flow_run_id)
