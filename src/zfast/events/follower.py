"""A subscriber's side of one source: joining, catching up, and knowing what is missing.

It knows no socket and no clock. A source is a publisher, or a relay with many.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from enum import Enum, auto

from zfast.errors import ProtocolError
from zfast.events.event import Event, Gap, PublisherJoined, PublisherLeft
from zfast.events.frames import EventFrame, decode_event
from zfast.events.messages import Ask, Marker, Ping, Positions, Snapshot, Welcome
from zfast.events.topics import level_of

#: Live events that wait for a snapshot; what is beyond is found missing, and asked for.
WAITING_EVENTS = 50_000
#: What was seen of so many publishers that have gone is kept.
ABSENT_PUBLISHERS = 256
#: A publisher that another relay does not know may yet come to it, within so many markers.
UNSURE_MARKERS = 10


class Phase(Enum):
    """Where a follower is."""

    GREETING = auto()  # nobody has answered yet
    JOINING = auto()  # its place among the events is not known to be there
    ASKING = auto()  # for what it lacks
    LIVE = auto()
    DONE = auto()  # the source has ended, and everything of it is here


class Follower:
    """Threads: one at a time.

    Args:
        prefixes: What is subscribed to; none is a prefix of another.
        is_new: The source began after the subscription: all of its past is wanted.
        truth: Deliver the current state of runs at first.

    Attributes:
        nonce: The topic of its markers, without the ``~``; another one for each source.
        to_ask: An Ask to be sent, or None.
    """

    def __init__(self, prefixes: Sequence[bytes], *, is_new: bool, truth: bool) -> None:
        self._prefixes = list(prefixes)
        self._levels = [level_of(prefix) for prefix in prefixes]
        self._truth = truth
        self._first = not is_new
        self._seen: Positions = {}
        #: Publishers that are there; what was seen of others is kept, for they may come back.
        self._present: set[bytes] = set()
        #: Those that have gone, of which the source has still all.
        self._departed: set[bytes] = set()
        #: Those that were there at an earlier source, and the markers until they are given up.
        self._unsure: dict[bytes, int] = {}
        self._earlier = b""
        self._waiting: list[EventFrame] = []
        #: Publishers of which something is missing, and was asked for.
        self._lacking: set[bytes] = set()
        self._snapshot: list[EventFrame] = []
        self._number = 0
        self._ending = False
        self.phase = Phase.GREETING
        self.source = b""
        self.nonce = b""
        self.to_ask: Ask | None = None

    def welcome(self, welcome: Welcome) -> bool:
        """A source answers; whether it is another one than before, with a socket of its own."""
        if welcome.source == self.source:
            return False
        self.source = welcome.source
        self.nonce = secrets.token_hex(8).encode()
        self.phase = Phase.JOINING
        self._ending = False
        self._waiting.clear()
        self._lacking.clear()
        return True

    def ping(self) -> Ping:
        """What to send for a Marker."""
        return Ping(source=self.source, nonce=self.nonce, prefixes=self._prefixes)

    def take(self, frame: EventFrame) -> list[Event]:
        """An event came."""
        if self.phase is not Phase.LIVE:
            if len(self._waiting) < WAITING_EVENTS:
                self._waiting.append(frame)
            return []
        return self._advance(frame)

    def mark(self, marker: Marker) -> list[Event]:
        """A marker came: all events that it counts came before it, or are lost."""
        if marker.source != self.source:
            return []
        self._ending = self._ending or marker.ending
        if self.phase is Phase.JOINING:
            self._ask()
        elif self.phase is Phase.LIVE:
            lacking = any(
                count > seen
                for publisher, counts in marker.positions.items()
                for count, seen in zip(counts, self._seen_of(publisher), strict=True)
            )
            if lacking or self._present - marker.positions.keys():
                self._ask()
                return []
            if self._ending:
                self.phase = Phase.DONE
            return self._give_up(marker.positions) + self._part(marker.left)
        return []

    def answer(self, part: Snapshot, frames: Sequence[EventFrame]) -> list[Event]:
        """Part of a snapshot came."""
        if self.phase is not Phase.ASKING or part.number != self._number:
            return []
        self._snapshot += frames
        if part.positions is None:
            return []
        events = self._catch_up(part.positions, set(part.left))
        self._first = False
        self._earlier = self.source
        self.phase = Phase.LIVE
        waiting, self._waiting = self._waiting, []
        # The source has forgotten them: asked again, it would say the same again.
        forgotten, self._lacking = self._lacking - part.positions.keys(), set()
        for frame in waiting:
            if frame.publisher in forgotten:
                self._accept(frame, events, replayed=False, tells_gap=True)
            else:
                events += self.take(frame)
        if self._ending and self.phase is Phase.LIVE:
            self.phase = Phase.DONE
        return events

    def ask_again(self) -> None:
        """The answer to an Ask is overdue."""
        if self.phase is Phase.ASKING:
            self._ask()

    def leave(self) -> list[Event]:
        """The source is gone for good: what it did not answer is missing, what came is not."""
        never_joined = self.phase in (Phase.GREETING, Phase.JOINING) and not self._seen
        events: list[Event] = []
        if never_joined or self.phase is Phase.ASKING:
            events.append(Gap(publisher=self.source.hex(), lost=0))
        self.phase = Phase.DONE
        for frame in self._snapshot:
            self._accept(frame, events, replayed=True)
        for frame in self._waiting:
            self._accept(frame, events, replayed=False)
        self._snapshot, self._waiting = [], []
        return events + self._miss(set(self._present))

    @property
    def publishers(self) -> list[str]:
        """Those that are followed."""
        return [publisher.hex() for publisher in self._present]

    def _ask(self) -> None:
        self.phase = Phase.ASKING
        self._number += 1
        self._snapshot = []
        self.to_ask = Ask(
            number=self._number,
            prefixes=self._prefixes,
            seen=self._seen,
            first=self._first,
            truth=self._truth,
        )

    def _advance(self, frame: EventFrame) -> list[Event]:
        index = self._index_of(frame)
        if index is None:
            return []
        events: list[Event] = []
        seen = self._seen.setdefault(frame.publisher, [0] * len(self._prefixes))
        count = frame.counts[self._levels[index]]
        if count <= seen[index]:
            return events
        self._meet(frame.publisher, events)
        if count > seen[index] + 1:
            self._lacking.add(frame.publisher)
            self._ask()
            self._waiting.append(frame)
            return events
        seen[index] = count
        _deliver(frame, events, replayed=False)
        return events

    def _accept(
        self, frame: EventFrame, events: list[Event], *, replayed: bool, tells_gap: bool = False
    ) -> None:
        """Deliver it if it was not yet, whatever came before it."""
        index = self._index_of(frame)
        if index is None:
            return
        seen = self._seen.setdefault(frame.publisher, [0] * len(self._prefixes))
        count = frame.counts[self._levels[index]]
        if count > seen[index]:
            self._meet(frame.publisher, events)
            if tells_gap and count > seen[index] + 1:
                lost = count - seen[index] - 1
                events.append(Gap(publisher=frame.publisher.hex(), lost=lost))
            seen[index] = count
            _deliver(frame, events, replayed=replayed)

    def _catch_up(self, positions: Positions, left: set[bytes]) -> list[Event]:
        vanished, events = self._present - positions.keys(), list[Event]()
        if self.source != self._earlier:
            self._unsure.update(dict.fromkeys(vanished, UNSURE_MARKERS))
        else:  # nobody has what they said at last; if some of it waits here, that tells the gap
            events += [Gap(publisher=each.hex(), lost=0) for each in vanished - self._lacking]
        events += self._miss(vanished)
        by_publisher: dict[bytes, list[EventFrame]] = {publisher: [] for publisher in positions}
        for frame in self._snapshot:
            if frame.publisher in by_publisher:
                by_publisher[frame.publisher].append(frame)
        self._snapshot = []
        for publisher, counts in positions.items():
            came = by_publisher[publisher]
            events += self._catch_up_with(publisher, counts, came, has_left=publisher in left)
        return events + self._part(left)

    def _catch_up_with(
        self, publisher: bytes, counts: list[int], frames: list[EventFrame], *, has_left: bool
    ) -> list[Event]:
        if len(counts) != len(self._prefixes):
            return []
        events: list[Event] = []
        is_new = publisher not in self._seen
        seen = self._seen_of(publisher)
        came = [frame for frame in frames if self._is_after(frame, seen)]
        if came or not has_left:
            self._meet(publisher, events)
        # A part of the snapshot may have been dropped on its way: then too it is a gap.
        lost = sum(max(0, now - before) for now, before in zip(counts, seen, strict=True))
        lost -= len(came)
        if lost > 0 and not (is_new and self._first):
            events.append(Gap(publisher=publisher.hex(), lost=lost))
        for frame in came:
            _deliver(frame, events, replayed=True)
        self._seen[publisher] = [max(now, before) for now, before in zip(counts, seen, strict=True)]
        return events

    def _meet(self, publisher: bytes, events: list[Event]) -> None:
        if publisher not in self._present:
            self._present.add(publisher)
            events.append(PublisherJoined(publisher=publisher.hex()))

    def _part(self, left: Collection[bytes]) -> list[Event]:
        """Those that have gone, and of which everything is here."""
        self._departed = set(left)
        return self._miss(self._present & self._departed)

    def _give_up(self, positions: Positions) -> list[Event]:
        """Who has not come to another relay in time will not: nobody has what it said at last."""
        self._unsure = {
            publisher: markers - 1
            for publisher, markers in self._unsure.items()
            if publisher not in positions and markers
        }
        return [
            Gap(publisher=each.hex(), lost=0) for each, left in self._unsure.items() if not left
        ]

    def _miss(self, publishers: set[bytes]) -> list[Event]:
        self._present -= publishers
        for publisher in list(self._seen)[: max(0, len(self._seen) - ABSENT_PUBLISHERS)]:
            if publisher not in self._present and publisher not in self._departed:
                del self._seen[publisher]
        return [PublisherLeft(publisher=publisher.hex()) for publisher in sorted(publishers)]

    def _is_after(self, frame: EventFrame, seen: list[int]) -> bool:
        index = self._index_of(frame)
        return index is not None and frame.counts[self._levels[index]] > seen[index]

    def _seen_of(self, publisher: bytes) -> list[int]:
        return self._seen.get(publisher) or [0] * len(self._prefixes)

    def _index_of(self, frame: EventFrame) -> int | None:
        for index, prefix in enumerate(self._prefixes):
            if frame.topic.startswith(prefix):
                return index
        return None


def _deliver(frame: EventFrame, events: list[Event], *, replayed: bool) -> None:
    try:
        event = decode_event(frame)
    except ProtocolError:
        # It was counted, and it cannot be read: it is missing, no more and no less.
        events.append(Gap(publisher=frame.publisher.hex(), lost=1))
        return
    event.replayed = replayed
    events.append(event)
