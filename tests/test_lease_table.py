"""The lease table against a model: who may read, when memory is free, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from zfast.errors import ProtocolError
from zfast.sharing.descriptor import Descriptor
from zfast.sharing.lease_table import DRIVER, MAX_KEPT_RATIO, Drop, Free, LeaseTable, Reduce

SEGMENT_NBYTES = 1 << 20
MIB = b"m" * 16


class Leases(RuleBasedStateMachine):
    """Processes publish, pass on, let go, die and lie; the model keeps plain multisets."""

    segments = Bundle("segments")
    publications = Bundle("publications")

    @initialize()
    def start(self):
        self.table = LeaseTable()
        self.owners: dict[bytes, bytes] = {}
        self.dead: set[bytes] = set()
        self.dropped: set[bytes] = set()
        self.holders: dict[Descriptor, Counter[bytes]] = {}
        self.freed: set[Descriptor] = set()
        self.generation: Counter[bytes] = Counter()
        self.kept: dict[bytes, int] = {}
        self.ranges: dict[bytes, list[tuple[int, int]]] = {}
        self.n_processes = 0

    def alive(self, process):
        return process not in self.dead

    processes = st.sampled_from([DRIVER, b"worker-1", b"worker-2", b"worker-3"])

    @rule(target=segments, owner=processes, name=st.binary(min_size=16, max_size=16))
    def add_segment(self, owner, name):
        if not self.alive(owner) or name in self.owners:
            return multiple()
        self.table.add_segment(owner, name, SEGMENT_NBYTES)
        self.owners[name] = owner
        self.kept[name] = SEGMENT_NBYTES
        return name

    @rule(
        target=publications,
        segment=segments,
        holder=processes,
        start=st.integers(0, SEGMENT_NBYTES - 1),
        nbytes=st.integers(1, SEGMENT_NBYTES),
        skip=st.integers(1, 5),
    )
    def publish(self, segment, holder, start, nbytes, skip):
        owner = self.owners[segment]
        generation = self.generation[owner] + skip
        descriptor = Descriptor(segment, generation, start, nbytes)
        known = segment not in self.dropped and self.alive(owner)
        if not known or start + nbytes > SEGMENT_NBYTES or not self.alive(holder):
            if self.alive(holder):
                self.refused(lambda: self.table.publish(owner, descriptor, holder))
            return multiple()
        self.table.publish(owner, descriptor, holder)
        self.generation[owner] = generation
        self.holders[descriptor] = Counter({holder: 1})
        return descriptor

    @rule(descriptor=publications, by=processes, holder=processes, part=st.floats(0, 1))
    def grant(self, descriptor, by, holder, part):
        if not self.alive(holder):
            return
        nbytes = max(1, int(descriptor.nbytes * part))
        inner = Descriptor(
            descriptor.segment_id,
            descriptor.generation,
            descriptor.offset + descriptor.nbytes - nbytes,
            nbytes,
        )
        holders = self.holders.get(descriptor)
        if holders and (holders[by] or by == self.owners[descriptor.segment_id]):
            self.table.grant(inner, holder, by=by)
            holders[holder] += 1
        else:
            self.refused(lambda: self.table.grant(inner, holder, by=by))

    @rule(descriptor=publications, holder=processes)
    def release(self, descriptor, holder):
        holders = self.holders.get(descriptor)
        if not holders or not holders[holder]:
            self.refused(lambda: self.table.release(descriptor.key, holder))
            return
        holders[holder] -= 1
        self.check_effects(self.table.release(descriptor.key, holder))

    @rule(process=processes.filter(bool))
    def die(self, process):
        if not self.alive(process):
            return
        self.dead.add(process)
        for holders in self.holders.values():
            holders[process] = 0
        self.check_effects(self.table.end_process(process))

    @rule(segment=consumes(segments), by=processes)
    def remove_segment(self, segment, by):
        leased = any(d.segment_id == segment for d in self.holders)
        if segment in self.dropped or self.owners[segment] != by or leased:
            self.refused(lambda: self.table.remove_segment(by, segment))
            return
        assert self.table.remove_segment(by, segment) == [Drop(segment)]
        self.dropped.add(segment)

    @rule(descriptor=publications, change=st.sampled_from(["id", "generation", "before", "after"]))
    def forge(self, descriptor, change):
        forged = {
            "id": Descriptor(b"x" * 16, descriptor.generation, descriptor.offset, 1),
            "generation": Descriptor(descriptor.segment_id, 1 << 40, descriptor.offset, 1),
            "before": Descriptor(
                descriptor.segment_id, descriptor.generation, descriptor.offset - 1, 1
            ),
            "after": Descriptor(
                descriptor.segment_id,
                descriptor.generation,
                descriptor.offset,
                descriptor.nbytes + 1,
            ),
        }[change]
        self.refused(lambda: self.table.grant(forged, DRIVER, by=DRIVER))

    @rule(descriptor=publications)
    def publish_again(self, descriptor):
        owner = self.owners[descriptor.segment_id]
        if self.alive(owner):  # a dead one's numbers are forgotten with it
            self.refused(lambda: self.table.publish(owner, descriptor, DRIVER))

    @rule(segment=segments, thief=processes)
    def publish_in_anothers_segment(self, segment, thief):
        if self.owners[segment] != thief:
            descriptor = Descriptor(segment, 1 << 50, 0, 1)
            self.refused(lambda: self.table.publish(thief, descriptor, DRIVER))

    def refused(self, action):
        before = self.snapshot()
        with pytest.raises(ProtocolError):
            action()
        assert self.snapshot() == before

    def snapshot(self):
        leases = sorted((h, d.key, n) for h, d, n in self.table.leases())
        return leases, self.table.n_segments, self.table.leased_nbytes

    def check_effects(self, effects):
        ended = [d for d, holders in self.holders.items() if not +holders]
        expected = []
        for descriptor in ended:
            del self.holders[descriptor]
            assert descriptor not in self.freed
            self.freed.add(descriptor)
            owner = self.owners[descriptor.segment_id]
            if self.alive(owner):
                expected.append(Free(owner, descriptor.generation))
        assert sorted((e.owner, e.generation) for e in effects if isinstance(e, Free)) == sorted(
            (e.owner, e.generation) for e in expected
        )
        drops = {effect.segment_id for effect in effects if isinstance(effect, Drop)}
        in_use = {d.segment_id for d in self.holders}
        due = {
            segment
            for segment, owner in self.owners.items()
            if owner in self.dead and segment not in in_use and segment not in self.dropped
        }
        assert drops == due
        self.dropped |= drops
        self.check_what_is_kept(effects)

    def check_what_is_kept(self, effects):
        for effect in effects:
            if isinstance(effect, Reduce):
                assert self.owners[effect.segment_id] in self.dead
                kept = sum(nbytes for _, nbytes in effect.ranges)
                assert kept * MAX_KEPT_RATIO <= self.kept[effect.segment_id]
                self.kept[effect.segment_id] = kept
                self.ranges[effect.segment_id] = effect.ranges
        for segment, owner in self.owners.items():
            leased = [(d.offset, d.nbytes) for d in self.holders if d.segment_id == segment]
            if owner in self.dead and leased:
                assert self.kept[segment] < MAX_KEPT_RATIO * sum(nbytes for _, nbytes in leased)
                assert set(leased) <= set(self.ranges.get(segment, leased))

    @invariant()
    def the_leases_are_the_models(self):
        if not hasattr(self, "table"):
            return
        have = Counter({(h, d.key): n for h, d, n in self.table.leases()})
        want = Counter(
            {(h, d.key): n for d, hs in self.holders.items() for h, n in hs.items() if n}
        )
        assert have == want
        for process in (DRIVER, b"worker-1", b"worker-2", b"worker-3"):
            assert self.table.n_held(process) == sum(1 for h, _ in want if h == process)
            for segment, owner in self.owners.items():
                may = segment not in self.dropped and (
                    owner == process or any(h == process and k[0] == segment for h, k in want)
                )
                assert self.table.may_read(process, segment) == may


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=60)


@pytest.mark.parametrize(
    "descriptor",
    [
        Descriptor(b"short", 1, 0, 1),
        Descriptor(MIB, 0, 0, 1),
        Descriptor(MIB, 1, -1, 1),
        Descriptor(MIB, 1, 0, 0),
        Descriptor(MIB, 1, 0, 1 << 63),
    ],
)
def test_a_malformed_descriptor_is_refused(descriptor):
    with pytest.raises(ProtocolError, match="malformed"):
        descriptor.check()


def test_a_descriptor_does_not_print_its_secret():
    descriptor = Descriptor(bytes(range(16)), 1, 0, 1)
    assert descriptor.segment_id.hex() not in str(descriptor)


def test_what_is_left_of_a_dead_processs_segment_is_reduced_to_what_is_leased():
    table = LeaseTable()
    table.add_segment(b"worker", MIB, SEGMENT_NBYTES)
    parts = [Descriptor(MIB, n + 1, n << 16, 1 << 16) for n in range(16)]
    for part in parts:
        table.publish(b"worker", part, DRIVER)
    assert table.end_process(b"worker") == []
    effects = [table.release(part.key, DRIVER) for part in parts]
    assert effects[:13] == [[]] * 13
    assert effects[13] == [Reduce(MIB, [(14 << 16, 1 << 16), (15 << 16, 1 << 16)])]
    assert effects[14:] == [[], [Drop(MIB)]]


def test_what_could_not_be_reduced_is_tried_again():
    table = LeaseTable()
    for owner, segment in ((b"worker", MIB), (b"other", b"o" * 16)):
        table.add_segment(owner, segment, SEGMENT_NBYTES)
    part = Descriptor(MIB, 1, 0, 1 << 16)
    table.publish(b"worker", part, DRIVER)
    again = Reduce(MIB, [(0, 1 << 16)])
    assert table.end_process(b"worker") == [again]
    table.not_reduced(MIB)
    assert table.end_process(b"other") == [again, Drop(b"o" * 16)]
    assert table.end_process(b"a third") == []
