"""Topics, frames, a publisher's memory and a follower: what needs no socket."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_process import make_event
from zfast.errors import ConfigError, ProtocolError, VersionMismatchError
from zfast.events.departed import Departed
from zfast.events.event import (
    Event,
    Gap,
    Input,
    PublisherJoined,
    PublisherLeft,
    StateEvent,
    WorkerEvent,
)
from zfast.events.follower import UNSURE_MARKERS, Follower, Phase
from zfast.events.frames import (
    MAX_BODY_NBYTES,
    EventFrame,
    decode_event,
    encode_body,
    pack_frame,
    unpack_frame,
)
from zfast.events.memory import ACTIVE_RUNS, ENDED_RUNS, HISTORY_EVENTS, EventMemory
from zfast.events.messages import (
    Ask,
    Marker,
    Ping,
    Snapshot,
    Welcome,
    decode_message,
    encode_message,
)
from zfast.events.topics import (
    MAX_PART,
    level_of,
    make_topic,
    parse_pattern,
    prefixes_of,
    split_topic,
    without_overlaps,
)

PUBLISHER = bytes(range(16))
PART = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TOPIC = st.tuples(PART, PART, PART, PART)


@given(TOPIC)
def test_a_topics_parts_come_back_whatever_they_are(parts: tuple[str, ...]) -> None:
    topic = make_topic(parts)
    assert split_topic(topic) == list(parts)
    assert b"\0" not in topic
    assert not topic.startswith(b"~")
    assert topic.isascii()


@given(TOPIC, TOPIC, st.integers(0, 4))
def test_a_prefix_matches_exactly_the_topics_with_its_parts(
    one: tuple[str, ...], other: tuple[str, ...], level: int
) -> None:
    prefix = make_topic(one[:level])
    assert make_topic(other).startswith(prefix) == (one[:level] == other[:level])
    assert prefixes_of(make_topic(one))[level] == prefix
    assert level_of(prefix) == level


@given(st.text(min_size=MAX_PART + 1, max_size=2 * MAX_PART))
def test_long_parts_are_cut_between_characters_as_written(text: str) -> None:
    part = make_topic([text])
    assert len(part) <= MAX_PART + 1
    assert part.count(b"%") * 2 <= sum(part.count(digit) for digit in b"0123456789ABCDEF") or True
    split_topic(part)


@given(st.lists(TOPIC.map(lambda parts: make_topic(parts[: len(parts[0]) % 5])), max_size=8), TOPIC)
def test_without_overlaps_the_same_is_matched_and_by_one(
    prefixes: list[bytes], parts: tuple[str, ...]
) -> None:
    topic = make_topic(parts)
    fewest = without_overlaps(prefixes)
    matching = [prefix for prefix in fewest if topic.startswith(prefix)]
    assert bool(matching) == any(topic.startswith(prefix) for prefix in prefixes)
    assert len(matching) <= 1


@pytest.mark.parametrize("text", ["a//b", "/a", "a/b/c/d/e"])
def test_a_pattern_that_cannot_match_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_pattern(text)


def test_a_pattern_may_name_odd_flows() -> None:
    assert parse_pattern("prod/task-run/my flow%2Fü/") == make_topic(
        ["prod", "task-run", "my flow/ü"]
    )


def _frame(event: StateEvent, counts: tuple[int, int, int, int, int]) -> EventFrame:
    topic = make_topic([event.environment, event.kind, event.flow_name, event.state_name])
    return unpack_frame(pack_frame(topic, PUBLISHER, counts, encode_body(event)))


@given(
    flow=PART,
    message=PART,
    tags=st.lists(PART),
    counts=st.tuples(*[st.integers(0, 2**64 - 1)] * 5),
)
def test_an_event_comes_back_from_its_frame(
    flow: str, message: str, tags: list[str], counts: tuple[int, int, int, int, int]
) -> None:
    event = make_event(1, flow=flow)
    event.message, event.tags = message, tags
    read = decode_event(_frame(event, counts))
    assert read.sequence == counts[0]
    assert read.publisher == PUBLISHER.hex()
    assert (read.flow_name, read.message, read.tags) == (flow, message, tags)


def test_a_body_is_bounded_whatever_is_in_it() -> None:
    state = make_event(1, flow="f" * 10**6)
    state.tags = ["t" * 10**5] * 20
    state.message = "m" * 10**6
    worker = WorkerEvent(environment="e", worker="w" * 10**6, state_name="Busy")
    counts = (1, 1, 1, 1, 1)
    for event in (state, worker):
        body = encode_body(event)
        assert len(body) <= MAX_BODY_NBYTES
        topic = make_topic([event.environment, event.kind, event.flow_name, event.state_name])
        read = decode_event(unpack_frame(pack_frame(topic, PUBLISHER, counts, body)))
        assert read.run_id == event.run_id[:1000]
    assert len(state.message) == 10**6  # the publisher's own is left alone
    state.tags, state.inputs = [], [Input(run_id=f"run-{number}") for number in range(20_000)]
    read = decode_event(_frame(state, counts))
    assert isinstance(read, StateEvent)
    assert (len(read.inputs), len(read.message), len(read.flow_name)) == (0, 1000, 1000)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_event(unpack_frame(data))


@given(st.data())
def test_a_mutated_frame_is_an_event_or_refused(data: st.DataObject) -> None:
    frame = bytearray(_frame(make_event(1), (1, 1, 1, 1, 1)).frame)
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode_event(unpack_frame(bytes(frame))), StateEvent)
    except ProtocolError:
        pass


@given(st.binary(max_size=100))
def test_bytes_that_are_no_control_message_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(data)


@pytest.mark.parametrize(
    "message",
    [
        Ask(number=1, prefixes=[b"a/b/c/d/e/"], seen={}),
        Ping(source=PUBLISHER, nonce=b"12345678", prefixes=[b"a/b/c/d/e/"]),
        Ask(number=1, prefixes=[b"a/"], seen={PUBLISHER: [-1]}),
    ],
)
def test_questions_that_no_topic_answers_are_refused(message: Ask | Ping) -> None:
    with pytest.raises(ProtocolError):
        decode_message(encode_message(message))


def test_a_body_that_is_nested_too_deep_is_refused() -> None:
    topic = make_topic(["default", "task-run", "etl", "Running"])
    deep = b"\x81\xa1x" + b"\x91" * 3000 + b"\xc0"
    with pytest.raises(ProtocolError):
        decode_event(unpack_frame(pack_frame(topic, PUBLISHER, (1,) * 5, deep)))


def test_frames_of_another_version_are_refused_by_name() -> None:
    frame = bytearray(_frame(make_event(1), (1, 1, 1, 1, 1)).frame)
    frame[frame.index(0) + 3] = 2
    with pytest.raises(VersionMismatchError, match="version 2"):
        unpack_frame(bytes(frame))


def test_fields_of_a_newer_version_are_skipped() -> None:
    fields = msgspec.to_builtins(make_event(1)) | {"version": 2, "colour": "blue"}
    topic = make_topic(["default", "task-run", "etl", "Running"])
    frame = pack_frame(topic, PUBLISHER, (1, 1, 1, 1, 1), msgspec.msgpack.encode(fields))
    assert decode_event(unpack_frame(frame)).run_id == "run-1"


# ---- a publisher's memory --------------------------------------------------------------


class Publishing:
    """A publisher without a socket."""

    def __init__(self) -> None:
        self.memory = EventMemory()

    def publish(self, event: StateEvent) -> EventFrame:
        topic = make_topic([event.environment, event.kind, event.flow_name, event.state_name])
        counts = self.memory.advance(topic)
        frame = _frame(event, counts)  # type: ignore[arg-type]
        self.memory.keep(frame, event.run_id, final=event.is_final)
        return frame


def test_a_memory_is_bounded() -> None:
    publishing = Publishing()
    for number in range(ACTIVE_RUNS + 10):
        publishing.publish(make_event(number))
    for number in range(ENDED_RUNS + 10):
        publishing.publish(make_event(number + 10**6, state="Completed"))
    truth = publishing.memory.truth([b""])
    assert len(truth) == ACTIVE_RUNS + ENDED_RUNS
    since = publishing.memory.since([b""], [publishing.memory.positions([b""])[0] - 20_000])
    assert len(since) <= HISTORY_EVENTS + ACTIVE_RUNS + ENDED_RUNS


def test_the_truth_is_the_last_state_of_each_run() -> None:
    publishing = Publishing()
    for state in ("Pending", "Running", "Completed"):
        publishing.publish(make_event(1, state=state))
    publishing.publish(make_event(2))
    states = [decode_event(unpack_frame(frame)) for frame in publishing.memory.truth([b""])]
    assert [(state.run_id, state.state_name) for state in states] == [
        ("run-1", "Completed"),
        ("run-2", "Running"),
    ]


def test_of_those_that_have_gone_the_earliest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publishing = Publishing()
    for number in range(10):
        publishing.publish(make_event(number))
    nbytes = publishing.memory.nbytes
    assert nbytes == sum(len(frame) for frame in publishing.memory.since([b""], [0]))
    memories: dict[bytes, EventMemory] = {}
    departed = Departed(memories)

    def go(publisher: bytes) -> list[bytes]:
        memories[publisher] = publishing.memory
        departed.keep(publisher)
        assert departed.publishers == memories.keys()
        return sorted(memories)

    monkeypatch.setattr("zfast.events.departed.KEPT_PUBLISHERS", 3)
    assert [go(each) for each in (b"a", b"b", b"c", b"d")][-1] == [b"b", b"c", b"d"]
    departed.forget(b"c")
    assert go(b"e") == [b"b", b"d", b"e"]
    monkeypatch.setattr("zfast.events.departed.KEPT_NBYTES", 2 * nbytes)
    assert go(b"f") == [b"e", b"f"]


# ---- a follower --------------------------------------------------------------------------

FLOWS = ("etl", "report", "etl2")
PATTERNS = ("default/", "default/task-run/etl/", "default/task-run/etl/Running/", "")


@given(
    published=st.lists(
        st.tuples(st.sampled_from(FLOWS), st.sampled_from(["Running", "Failed"]), st.booleans()),
        max_size=40,
    ),
    patterns=st.sets(st.sampled_from(PATTERNS), min_size=1),
    joined_at=st.integers(0, 10),
    is_new=st.booleans(),
)
def test_a_follower_misses_nothing_whatever_the_publisher_drops(
    published: list[tuple[str, str, bool]], patterns: set[str], joined_at: int, is_new: bool
) -> None:
    """Frames are dropped at random; in the end it has every event that it asked for, in order."""
    prefixes = without_overlaps(pattern.encode() for pattern in patterns)
    publishing = Publishing()
    follower = Follower(prefixes, is_new=is_new, truth=True)
    got: list[Event] = []
    expected: list[str] = []

    def settle() -> None:
        while follower.to_ask is not None:
            ask, follower.to_ask = follower.to_ask, None
            got.extend(follower.answer(*_answer(ask, publishing.memory)))

    for number, (flow, state, dropped) in enumerate(published):
        event = make_event(number, flow=flow, state=state)
        frame = publishing.publish(event)
        if number == joined_at:
            follower.welcome(Welcome(source=b"s"))
            got += follower.mark(_marker(publishing.memory, prefixes))
            settle()
        matches = any(frame.topic.startswith(prefix) for prefix in prefixes)
        if matches:
            expected.append(event.state_id)
        if number > joined_at and matches and not dropped:
            got += follower.take(frame)
            settle()
    if follower.phase is Phase.GREETING:
        follower.welcome(Welcome(source=b"s"))
    got += follower.mark(_marker(publishing.memory, prefixes))
    settle()
    assert follower.phase is Phase.LIVE
    assert not any(isinstance(event, Gap) for event in got)
    assert [event.state_id for event in got if isinstance(event, StateEvent)] == expected


def test_what_cannot_be_had_any_more_is_told_and_the_truth_follows() -> None:
    publishing = Publishing()
    follower = Follower([b""], is_new=False, truth=True)
    follower.welcome(Welcome(source=b"s"))
    follower.mark(_marker(publishing.memory, [b""]))
    assert follower.to_ask is not None
    follower.answer(*_answer(follower.to_ask, publishing.memory))
    n = HISTORY_EVENTS + 100
    for number in range(n):
        publishing.publish(make_event(number % 3, state="Running"))
    got: list[Event] = []
    got += follower.mark(_marker(publishing.memory, [b""]))
    got += follower.answer(*_answer(follower.to_ask, publishing.memory))
    kinds = [type(event) for event in got]
    assert kinds[0] is Gap
    assert isinstance(got[0], Gap)
    assert got[0].lost + kinds.count(StateEvent) == n
    last = got[-1]
    assert isinstance(last, StateEvent)
    assert last.sequence == n


def test_a_source_that_goes_without_an_answer_is_a_gap_and_what_came_is_delivered() -> None:
    publishing = Publishing()
    follower = Follower([b""], is_new=False, truth=True)
    follower.welcome(Welcome(source=PUBLISHER))
    got = follower.mark(_marker(publishing.memory, [b""], PUBLISHER))
    got += follower.take(publishing.publish(make_event(1)))
    assert not got
    got = follower.leave()
    assert got[:2] == [
        Gap(publisher=PUBLISHER.hex(), lost=0),
        PublisherJoined(publisher=PUBLISHER.hex()),
    ]
    assert [event.run_id for event in got if isinstance(event, StateEvent)] == ["run-1"]
    assert got[3:] == [PublisherLeft(publisher=PUBLISHER.hex())]
    assert follower.leave() == []


def test_what_a_relay_has_forgotten_is_a_gap_and_is_asked_for_once() -> None:
    publishing = Publishing()
    follower = Follower([b""], is_new=True, truth=True)
    follower.welcome(Welcome(source=b"relay"))
    nobody = Marker(source=b"relay", positions={})

    def settle() -> list[Event]:
        ask, follower.to_ask = follower.to_ask, None
        assert ask is not None
        return follower.answer(Snapshot(number=ask.number, positions={}), [])

    got = follower.mark(nobody) + settle()
    frames = [publishing.publish(make_event(number)) for number in range(1, 5)]
    got += follower.take(frames[0])
    got += follower.take(frames[2])  # the second is missing, and its publisher has left the relay
    got += follower.take(frames[3])
    got += settle()
    assert follower.to_ask is None
    assert [event.run_id for event in got if isinstance(event, StateEvent)] == [
        "run-1", "run-3", "run-4"
    ]  # fmt: skip
    assert [e for e in got if isinstance(e, Gap)] == [Gap(publisher=PUBLISHER.hex(), lost=1)]
    got = follower.mark(nobody) + settle()
    assert got == [
        Gap(publisher=PUBLISHER.hex(), lost=0),  # it may have said more
        PublisherLeft(publisher=PUBLISHER.hex()),
    ]
    assert follower.phase is Phase.LIVE


def test_what_a_publisher_said_at_last_is_had_after_it_has_left() -> None:
    publishing = Publishing()
    follower = Follower([b""], is_new=False, truth=True)
    follower.welcome(Welcome(source=b"relay"))

    def meet() -> list[Event]:
        marker = _marker(publishing.memory, [b""], b"relay")
        got = follower.mark(Marker(source=b"relay", positions=marker.positions, left=[PUBLISHER]))
        if follower.to_ask is not None:
            part, frames = _answer(follower.to_ask, publishing.memory)
            follower.to_ask = None
            part = Snapshot(number=part.number, positions=part.positions, left=[PUBLISHER])
            got += follower.answer(part, frames)
        return got

    left = PublisherLeft(publisher=PUBLISHER.hex())
    publishing.publish(make_event(1))
    assert _names(meet()) == ["PublisherJoined", "StateEvent", "PublisherLeft"]
    late = publishing.publish(make_event(1, state="Completed"))  # not heard, and it has left
    got = meet()
    assert _names(got) == ["PublisherJoined", "StateEvent", "PublisherLeft"]
    assert got[-1] == left
    # It is told once, whatever comes late, until the relay has forgotten it too.
    assert follower.take(late) == []
    assert meet() == []
    assert follower.mark(Marker(source=b"relay", positions={})) == []
    assert follower.to_ask is None


def test_who_does_not_come_to_another_relay_has_left_a_gap() -> None:
    publishing = Publishing()
    follower = Follower([b""], is_new=False, truth=True)
    publishing.publish(make_event(1))
    follower.welcome(Welcome(source=b"relay-1"))
    follower.mark(_marker(publishing.memory, [b""], b"relay-1"))
    follower.answer(*_answer(follower.to_ask, publishing.memory))
    follower.welcome(Welcome(source=b"relay-2"))
    nobody = Marker(source=b"relay-2", positions={})
    follower.mark(nobody)
    assert follower.to_ask is not None
    got = follower.answer(Snapshot(number=follower.to_ask.number, positions={}), [])
    assert _names(got) == ["PublisherLeft"]
    got = [event for _ in range(2 * UNSURE_MARKERS) for event in follower.mark(nobody)]
    assert got == [Gap(publisher=PUBLISHER.hex(), lost=0)]


def test_a_publisher_that_comes_back_is_not_told_twice() -> None:
    publishing = Publishing()
    follower = Follower([b""], is_new=True, truth=True)
    follower.welcome(Welcome(source=b"relay-1"))
    publishing.publish(make_event(1))
    follower.mark(_marker(publishing.memory, [b""], b"relay-1"))
    assert follower.to_ask is not None
    got = follower.answer(*_answer(follower.to_ask, publishing.memory))
    # Another relay, which does not know the publisher yet.
    follower.welcome(Welcome(source=b"relay-2"))
    follower.mark(Marker(source=b"relay-2", positions={}))
    got += follower.answer(Snapshot(number=follower.to_ask.number, positions={}), [])
    frame = publishing.publish(make_event(2))
    got += follower.take(frame)
    assert _names(got) == [
        "PublisherJoined", "StateEvent", "PublisherLeft", "PublisherJoined", "StateEvent"
    ]  # fmt: skip
    assert isinstance(got[0], PublisherJoined)


def _names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def _marker(memory: EventMemory, prefixes: list[bytes], source: bytes = b"s") -> Marker:
    return Marker(source=source, positions={PUBLISHER: memory.positions(prefixes)})


def _answer(ask: Ask | None, memory: EventMemory) -> tuple[Snapshot, list[EventFrame]]:
    """As the desk answers."""
    assert ask is not None
    seen = ask.seen.get(PUBLISHER)
    if seen is None and ask.first:
        frames = memory.truth(ask.prefixes)
    else:
        frames = memory.since(ask.prefixes, seen or [0] * len(ask.prefixes))
    positions = {PUBLISHER: memory.positions(ask.prefixes)}
    return (
        Snapshot(number=ask.number, positions=positions),
        [unpack_frame(frame) for frame in frames],
    )
