"""Streams without sockets: any order of events, and a peer that drops, repeats and tears."""

from __future__ import annotations

import dataclasses
import gc
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfast import _core
from zfast.errors import ConfigError, ProtocolError
from zfast.transport import receive_pool, streams
from zfast.transport.incoming_streams import Admission, IncomingStreams, StreamedValue
from zfast.transport.outgoing_streams import OutgoingStreams
from zfast.transport.streams import Credit, StreamKind

CHUNK = 64
ANSWERS = (StreamKind.ACCEPT, StreamKind.REFUSE)


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """The same machine with limits that a test can reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK_NBYTES", CHUNK)
        patch.setattr(streams, "CHUNK_PIECES", 3)
        patch.setattr(streams, "INITIAL_CREDIT", 4 * (CHUNK + streams.MESSAGE_COST))
        patch.setattr(streams, "EARLY_MAX_NBYTES", 2 * CHUNK)
        patch.setattr(streams, "MAX_STREAMS", 3)
        yield


def in_use():
    gc.collect()
    return receive_pool.statistics().in_use_nbytes


class Pair:
    """Both machines and the wire between them."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.credit = Credit()
        self.window = self.credit.limit
        self.consumed = 0
        self.outgoing = OutgoingStreams(self.credit)
        self.admission = Admission(limit)
        self.incoming = IncomingStreams(self.admission)
        self.wire: deque[streams.StreamMessage] = deque()
        self.answers: deque[streams.StreamMessage] = deque()
        self.values: list[StreamedValue] = []

    def send(self) -> bool:
        message = self.outgoing.next_message()
        if message is None:
            return False
        self.outgoing.sent(message)
        assert self.credit.used <= self.credit.limit
        self.wire.append(message)
        return True

    def depart(self) -> bool:
        """As the core sends: chunks of one stream without a look at the others."""
        departure = self.outgoing.next_departure()
        if departure is None:
            return self.send()
        stream, count = departure
        while count and stream.offset < stream.nbytes and self.credit.allows(stream.cost):
            message = stream.next_chunk()
            stream.sent(message)
            self.credit.used += message.cost
            self.wire.append(message)
            count -= 1
        self.outgoing.departed(stream)
        return True

    def deliver(self, message: streams.StreamMessage | None = None) -> bool:
        if message is None:
            if not self.wire:
                return False
            message = self.wire.popleft()
        self.consumed += message.cost
        try:
            value = self.incoming.receive(
                message.kind, message.stream_id, message.flags, message.body, message.buffers
            )
        finally:
            self.answers.extend(self.incoming.replies)
            self.incoming.replies.clear()
        if value is not None:
            self.values.append(value)
        return True

    def deliver_all(self) -> None:
        while self.deliver():
            pass

    def answer(self) -> bool:
        self.credit.limit = max(self.credit.limit, self.consumed + self.window)
        if not self.answers:
            return False
        reply = self.answers.popleft()
        assert reply.kind in ANSWERS
        self.outgoing.receive(reply.kind, reply.stream_id, reply.body)
        return True

    def take(self) -> bool:
        waiting = [value for value in self.values if value.stream.admitted]
        if not waiting:
            return False
        self.admission.leave(waiting[0].stream)
        self.answers.extend(self.incoming.replies)
        self.incoming.replies.clear()
        return True

    def run(self) -> None:
        # Not `or`: each must have its turn.
        while any([self.send(), self.deliver(), self.answer(), self.take()]):
            pass


def views(buffers):
    return [memoryview(buffer) for buffer in buffers]


def contents(value):
    return [bytes(buffer) for buffer in value.buffers]


values = st.lists(st.binary(max_size=5 * CHUNK), min_size=1, max_size=8)


@given(st.lists(values, max_size=6), st.data(), st.booleans())
def test_values_arrive_whole_in_any_order_of_events(sent, data, checksum):
    pair = Pair(limit=64 * CHUNK)
    trackers = []
    todo = deque(sent)
    actions = [pair.send, pair.depart, pair.deliver, pair.answer, pair.take]
    for _ in range(data.draw(st.integers(0, 60))):
        if todo and data.draw(st.booleans()):
            trackers.append(_core.SendTracker())
            pair.outgoing.open(views(todo.popleft()), trackers[-1], checksum=checksum)
        data.draw(st.sampled_from(actions))()
        assert pair.admission.in_use <= 64 * CHUNK + 3 * 2 * CHUNK
    for value in todo:
        trackers.append(_core.SendTracker())
        pair.outgoing.open(views(value), trackers[-1], checksum=checksum)
    pair.run()
    assert sorted(map(contents, pair.values)) == sorted(sent)
    assert pair.admission.in_use == 0
    assert not pair.outgoing.active
    assert all(tracker.done for tracker in trackers)


@given(
    st.lists(values, min_size=1, max_size=4),
    st.integers(0, 40),
    st.sampled_from(["drop", "repeat", "swap", "cut", "flip", "forge"]),
)
def test_what_a_bad_wire_does_is_an_error_and_never_wrong_data(sent, at, fault):
    pair = Pair()
    for value in sent:
        pair.outgoing.open(views(value), _core.SendTracker(), checksum=True)
    errors = []
    step = 0
    progress = True
    while progress:
        progress = pair.send()
        while pair.wire:
            messages = [pair.wire.popleft()]
            if step == at:
                messages = spoil(messages[0], fault, pair)
            step += 1
            for message in messages:
                try:
                    pair.deliver(message)
                except ProtocolError as error:
                    errors.append(error)
            progress = True
        progress = pair.answer() or pair.take() or progress
    for value in pair.values:
        assert contents(value) in sent
    pair.incoming.abandon()
    assert pair.admission.in_use == 0


def spoil(message, fault, pair):
    if fault == "drop":
        return []
    if fault == "repeat":
        return [message, message]
    if fault == "swap" and pair.wire:
        return [pair.wire.popleft(), message]
    if fault == "forge":
        return [dataclasses.replace(message, stream_id=message.stream_id + 1)]
    if message.kind == StreamKind.CHUNK:
        first, *rest = message.buffers
        if fault == "cut":
            return [dataclasses.replace(message, buffers=[first[:-1], *rest])]
        if fault == "flip":
            torn = bytearray(first)
            torn[0] ^= 1
            return [dataclasses.replace(message, buffers=[memoryview(torn), *rest])]
    return [message]


def test_streams_take_turns_so_that_a_small_one_overtakes_a_large_one():
    pair = Pair()
    pair.outgoing.open(views([b"x" * 50 * CHUNK]), _core.SendTracker())
    for _ in range(3):
        pair.send(), pair.deliver(), pair.answer()
    pair.outgoing.open(views([b"y" * 2 * CHUNK]), _core.SendTracker())
    pair.run()
    assert [value.stream.nbytes for value in pair.values] == [2 * CHUNK, 50 * CHUNK]


def test_streams_that_send_by_themselves_take_turns_too():
    pair = Pair()
    for size in (50 * CHUNK, 2 * CHUNK):
        pair.outgoing.open(views([bytes(size)]), _core.SendTracker())
    while any([pair.depart(), pair.deliver(), pair.answer(), pair.take()]):
        pass
    assert [value.stream.nbytes for value in pair.values] == [2 * CHUNK, 50 * CHUNK]


def test_a_stream_with_a_digest_does_not_send_by_itself():
    pair = Pair()
    pair.outgoing.open(views([bytes(CHUNK)]), _core.SendTracker(), checksum=True)
    pair.send()
    assert pair.outgoing.next_departure() is None
    pair.run()
    assert len(pair.values) == 1


def test_a_sender_without_credit_waits():
    pair = Pair()
    pair.outgoing.open(views([b"x" * 2 * CHUNK] * 3), _core.SendTracker())
    while pair.send():
        pass
    pair.deliver()
    pair.answer()  # accepted
    while pair.send():
        pass
    assert pair.credit.used <= pair.credit.limit
    assert len(pair.wire) == 4
    pair.run()
    assert len(pair.values) == 1


def test_a_large_value_waits_until_the_others_are_taken():
    pair = Pair(limit=10 * CHUNK)
    for _ in range(2):
        pair.outgoing.open(views([bytes(6 * CHUNK)]), _core.SendTracker())
    while any([pair.send(), pair.deliver(), pair.answer()]):
        pass
    assert len(pair.values) == 1
    assert pair.take()
    pair.run()
    assert len(pair.values) == 2


def test_a_value_beyond_the_limit_is_refused_with_both_numbers():
    pair = Pair(limit=10 * CHUNK)
    tracker = _core.SendTracker()
    stream = pair.outgoing.open(views([bytes(11 * CHUNK)]), tracker)
    pair.run()
    assert stream.ended
    assert stream.failure is not None
    assert "704 bytes" in stream.failure
    assert "640 at most" in stream.failure
    assert tracker.done
    assert not pair.outgoing.active


def test_a_cancelled_stream_leaves_nothing_behind():
    before = in_use()
    pair = Pair()
    stream = pair.outgoing.open(views([bytes(20 * CHUNK)]), _core.SendTracker())
    for _ in range(4):
        pair.send(), pair.deliver(), pair.answer()
    assert pair.incoming.active
    pair.outgoing.cancel(stream, "changed my mind")
    pair.run()
    assert not pair.incoming.active
    assert pair.admission.in_use == 0
    assert in_use() == before
    pair.outgoing.open(views([b"next"]), _core.SendTracker())
    pair.run()
    assert contents(pair.values[0]) == [b"next"]


def test_a_refused_streams_late_chunks_are_ignored_and_others_go_on():
    pair = Pair()
    for content in (b"a", b"b"):
        pair.outgoing.open(views([content * CHUNK * 2]), _core.SendTracker())
    while pair.send():
        pass
    pair.wire.remove(next(m for m in pair.wire if m.kind == StreamKind.CHUNK))
    with pytest.raises(ProtocolError, match=r"is missing: this one starts at byte 64"):
        pair.deliver_all()
    pair.run()
    assert [contents(value) for value in pair.values] == [[b"b" * CHUNK * 2]]
    assert not pair.outgoing.active


def test_more_streams_than_a_peer_may_open_wait_their_turn():
    pair = Pair()
    sent = [[bytes([i]) * CHUNK] for i in range(10)]
    for value in sent:
        pair.outgoing.open(views(value), _core.SendTracker())
    pair.run()
    assert sorted(map(contents, pair.values)) == sent


@pytest.mark.compiled
def test_the_memory_is_used_again_and_never_while_a_view_lives():
    receive_pool.trim()
    size = 3 << 20
    kept = memoryview(_core.Block(size))
    kept[:5] = b"first"
    part = kept[:5]
    del kept
    other = _core.Block(size)
    other.write(0, b"other")
    assert bytes(part) == b"first"
    del part
    mapped = receive_pool.statistics().mapped
    again = _core.Block(size - 1000)
    assert receive_pool.statistics().mapped == mapped
    assert len(again) == size - 1000
    with pytest.raises(ValueError, match="do not fit"):
        again.write(size - 1000, b"x")


@pytest.mark.compiled
def test_the_pool_keeps_no_more_than_it_may():
    receive_pool.retain_at_most(4 << 20)
    try:
        blocks = [_core.Block(2 << 20) for _ in range(5)]
        del blocks
        assert receive_pool.statistics().retained_nbytes <= 4 << 20
        receive_pool.trim()
        assert receive_pool.statistics().retained_nbytes == 0
    finally:
        receive_pool.retain_at_most(512 << 20)
    with pytest.raises(ConfigError, match="whole number"):
        receive_pool.retain_at_most(-1)


@pytest.mark.compiled
def test_too_much_memory_is_a_memory_error():
    with pytest.raises(MemoryError, match="no memory to receive"):
        _core.Block((1 << 63) - 1)
