"""What a publisher remembers: its counts, its last events, and the last state of each run. Bounded.

It knows no socket. The relay has one for each publisher that it hears.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from zfast.events.frames import EventFrame
from zfast.events.topics import level_of, prefixes_of

#: Last events that are kept whole, for who has missed some: their number and their bytes.
HISTORY_EVENTS = 4096
HISTORY_NBYTES = 4 << 20
#: Runs whose last state is kept: those under way, and those that have ended.
ACTIVE_RUNS = 16_384
ENDED_RUNS = 2048
#: Topics that are counted; flows and states beyond that share one.
TOPICS = 8192


class EventMemory:
    """Counts and the current truth of one publisher. Threads: one at a time."""

    def __init__(self) -> None:
        self._positions: dict[bytes, int] = {b"": 0}
        self._prefixes: dict[bytes, tuple[bytes, ...]] = {}
        self._history: deque[EventFrame] = deque()
        self._history_nbytes = 0
        self._active: OrderedDict[str, EventFrame] = OrderedDict()
        self._ended: OrderedDict[str, EventFrame] = OrderedDict()

    def knows(self, topic: bytes) -> bool:
        """Whether a topic is counted already, or may yet be."""
        return topic in self._prefixes or len(self._prefixes) < TOPICS

    def advance(self, topic: bytes) -> tuple[int, ...]:
        """Count one more event of a topic; the counts of its prefixes, by level."""
        positions = self._positions
        counts = []
        for prefix in self._prefixes_of(topic):
            count = positions.get(prefix, 0) + 1
            positions[prefix] = count
            counts.append(count)
        return tuple(counts)

    def follow(self, frame: EventFrame) -> None:
        """Take the counts of an event that another process counted.

        Of a topic too many only that there was one more event.
        """
        if not self.knows(frame.topic):
            self._positions[b""] = frame.counts[0]
            return
        for prefix, count in zip(self._prefixes_of(frame.topic), frame.counts, strict=True):
            self._positions[prefix] = count

    def keep(self, frame: EventFrame, run_id: str, *, final: bool) -> None:
        """Remember an event: it is the current state of its run."""
        self._history.append(frame)
        self._history_nbytes += len(frame.frame)
        while len(self._history) > HISTORY_EVENTS or self._history_nbytes > HISTORY_NBYTES:
            self._history_nbytes -= len(self._history.popleft().frame)
        if final:
            self._active.pop(run_id, None)
            self._ended.pop(run_id, None)
            self._ended[run_id] = frame
            if len(self._ended) > ENDED_RUNS:
                self._ended.popitem(last=False)
        else:
            # A run that ended can begin again: Prefect retries flow runs.
            self._ended.pop(run_id, None)
            self._active[run_id] = frame
            if len(self._active) > ACTIVE_RUNS:
                self._active.popitem(last=False)

    def end_runs(self) -> None:
        """Its process has died: what it said is under way is not the truth any more."""
        self._active.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all events that are remembered."""
        kept = {id(frame): frame for frame in (*self._active.values(), *self._ended.values())}
        kept.update((id(frame), frame) for frame in self._history)
        return sum(len(frame.frame) for frame in kept.values())

    def positions(self, prefixes: Iterable[bytes]) -> list[int]:
        """How many events there have been under each prefix."""
        return [self._positions.get(prefix, 0) for prefix in prefixes]

    def truth(self, prefixes: Sequence[bytes]) -> list[bytes]:
        """The last state of each run that is remembered, in the order they came."""
        return self._frames(prefixes, [0] * len(prefixes), with_history=False)

    def since(self, prefixes: Sequence[bytes], seen: Sequence[int]) -> list[bytes]:
        """What came after the counts that a subscriber has seen, as far as it is remembered."""
        return self._frames(prefixes, seen, with_history=True)

    def _frames(
        self, prefixes: Sequence[bytes], seen: Sequence[int], *, with_history: bool
    ) -> list[bytes]:
        wanted = [
            (prefix, level_of(prefix), count)
            for prefix, count in zip(prefixes, seen, strict=True)
            if self._positions.get(prefix, 0) > count
        ]
        if not wanted:
            return []
        found: dict[int, bytes] = {}
        sources: list[Iterable[EventFrame]] = [self._active.values(), self._ended.values()]
        if with_history:
            sources.append(self._history)
        for source in sources:
            for frame in source:
                for prefix, level, count in wanted:
                    if frame.counts[level] > count and frame.topic.startswith(prefix):
                        found[frame.counts[0]] = frame.frame
                        break
        return [found[sequence] for sequence in sorted(found)]

    def _prefixes_of(self, topic: bytes) -> tuple[bytes, ...]:
        prefixes = self._prefixes.get(topic)
        if prefixes is None:
            prefixes = self._prefixes[topic] = prefixes_of(topic)
        return prefixes
