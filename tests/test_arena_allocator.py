"""The allocator as a state machine, and its fragmentation over a long trace."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import zfast
from arena_process import run_alone
from zfast import arena

PAGE = 4096
SIZES = st.one_of(st.integers(131_072, 300_000), st.integers(300_000, 4_000_000))


def pages(nbytes):
    return -(-nbytes // PAGE) * PAGE


class Kept:
    """An array of one value and its publications: what the arena must not change."""

    def __init__(self, array, value):
        self.array = array  # None: let go
        self.value = value
        self.start, self.nbytes = array.ctypes.data, array.nbytes
        self.published = {}  # generation: what a peer sees of it

    def check(self):
        if self.array is not None:
            assert (self.array == self.value).all()
        for seen in self.published.values():
            assert (seen == self.value).all()


class Arena(RuleBasedStateMachine):
    """Against a list of what is held and published, whatever the order of events."""

    def __init__(self):
        super().__init__()
        gc.collect()
        arena.trim()
        self.sharing = zfast.share_memory()
        self.before = arena.statistics()
        self.kept = []
        self.ended = [0]
        self.mappings = {}
        self.next_value = 0

    def value(self):
        self.next_value = self.next_value % 250 + 1
        return self.next_value

    def pick(self, data, *, held=None, published=None):
        fit = [
            one
            for one in self.kept
            if held in (None, one.array is not None) and published in (None, bool(one.published))
        ]
        return data.draw(st.sampled_from(fit)) if fit else None

    @rule(nbytes=SIZES)
    def allocate(self, nbytes):
        value = self.value()
        array = np.full(nbytes, value, np.uint8)
        assert arena.owns(array.ctypes.data)
        self.kept.append(Kept(array, value))

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), part=st.floats(0, 0.99))
    def publish(self, data, part):
        one = self.pick(data)
        at = int(one.nbytes * part)
        exclusive = not one.published
        publication = arena.publish(one.start + at, one.nbytes - at, exclusive=exclusive)
        assert publication.generation not in self.ended
        segment = arena.segment(publication.segment_index)
        mapping = self.mappings.get(publication.segment_index)
        if mapping is None:
            mapping = arena.Mapping(segment.fd, segment.nbytes)
            self.mappings[publication.segment_index] = mapping
        view = mapping.view(publication.offset, one.nbytes - at, None)
        one.published[publication.generation] = np.frombuffer(view, np.uint8)
        if one.array is not None:
            one.array.flags.writeable = False

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def let_go(self, data):
        one = self.pick(data, held=True)
        if one is None:
            return
        one.array = None
        if not one.published:
            self.kept.remove(one)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def unpublish(self, data):
        one = self.pick(data, published=True)
        if one is None:
            return
        generation = data.draw(st.sampled_from(sorted(one.published)))
        one.check()
        del one.published[generation]
        assert arena.unpublish(generation)
        self.ended.append(generation)
        if not one.published and one.array is None:
            self.kept.remove(one)

    @rule(data=st.data())
    def unpublish_again(self, data):
        assert not arena.unpublish(data.draw(st.sampled_from(self.ended)))

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), nbytes=st.one_of(SIZES, st.integers(1, 131_072)))
    def resize(self, data, nbytes):
        one = self.pick(data, held=True)
        if one is None:
            return
        array, one.array = one.array, None
        array.flags.writeable = True
        array.resize(nbytes, refcheck=False)
        assert (array[: one.nbytes] == one.value).all()
        array[:] = one.value
        if one.published:  # what was published stays; the array is another block now
            assert array.ctypes.data != one.start
        else:
            self.kept.remove(one)
        if arena.owns(array.ctypes.data):
            self.kept.append(Kept(array, one.value))

    @rule(keep=st.sampled_from([0, 64 << 20]))
    def trim(self, keep):
        arena.trim(keep)
        assert arena.statistics().retained_nbytes <= keep
        for index in arena.released_segments():
            self.mappings.pop(index, None)

    @invariant()
    def nothing_changed(self):
        for one in self.kept[-3:]:
            one.check()

    @invariant()
    def the_books_are_right(self):
        now = arena.statistics()
        live = sum(pages(one.nbytes) for one in self.kept if one.array is not None)
        used = sum(pages(one.nbytes) for one in self.kept)
        published = sum(pages(one.nbytes) for one in self.kept if one.published)
        assert now.n_blocks - self.before.n_blocks == len(self.kept)
        assert now.live_nbytes - self.before.live_nbytes == live
        assert now.published_nbytes - self.before.published_nbytes == published
        assert now.n_publications - self.before.n_publications == sum(
            len(one.published) for one in self.kept
        )
        free_before = self.before.mapped_nbytes - self.before.free_nbytes
        assert now.mapped_nbytes == used + now.free_nbytes + free_before
        assert now.largest_free_nbytes <= now.free_nbytes

    def teardown(self):
        while self.kept:
            one = self.kept.pop()
            one.check()
            for generation in one.published:
                assert arena.unpublish(generation)
            del one
        self.sharing.stop()
        gc.collect()
        assert arena.statistics().n_blocks == self.before.n_blocks


TestArena = Arena.TestCase
TestArena.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize(("largest_mib", "n_steps"), [(2, 30_000), (16, 4_000)])
def test_fragmentation_over_a_long_trace(largest_mib, n_steps):
    """At a sixteenth of the real sizes: segments of 4 MiB, blocks of 8 KiB to 2 or 16 MiB."""
    printed = run_alone(
        f"""
        largest, n_steps = {largest_mib} * MIB, {n_steps}
        """
        """
        import math, random
        arena.start(arena.ArenaSettings(segment_nbytes=4 * MIB, retain_nbytes=0))
        rng, blocks, live, most, ratios = random.Random(1), [], 0, 96 * MIB, []
        for step in range(n_steps):
            if not blocks or rng.random() < 0.9 - 0.8 * live / (2 * most):
                nbytes = int(math.exp(rng.uniform(math.log(8192), math.log(largest))))
                blocks.append(arena.allocate(nbytes))
                live += nbytes
            else:
                i = rng.randrange(len(blocks))
                blocks[i], blocks[-1] = blocks[-1], blocks[i]
                live -= blocks.pop().nbytes
            if step > 1000 and live > most / 2:
                now = arena.statistics()
                ratios.append(now.mapped_nbytes / now.live_nbytes)
        now = arena.statistics()
        print(sum(ratios) / len(ratios), max(ratios), now.peak_mapped_nbytes / now.peak_live_nbytes)
        """
    )
    mean, worst, of_the_peak = map(float, printed.split())
    sys.stdout.write(
        f"mapped over live: mean {mean:.2f}, worst {worst:.2f}, peak {of_the_peak:.2f}"
    )
    assert mean < 1.5
    assert worst < 2.2
    assert of_the_peak < 1.6
