"""The arena in one process: NumPy's arrays in it, publications, and read-only views."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import mmap
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

import zfast
from arena_process import run_alone
from zfast import arena
from zfast.errors import ArenaError, ArenaFullError, ConfigError

KIB = 1024
THRESHOLD = 128 * KIB


def born_in_arena(array):
    return arena.owns(array.__array_interface__["data"][0])


def publish(array, *, exclusive=True):
    start = array.__array_interface__["data"][0]
    return arena.publish(start, array.nbytes, exclusive=exclusive)


def peer_view(publication, nbytes):
    """What another process sees: its own mapping of the segment."""
    segment = arena.segment(publication.segment_index)
    return arena.Mapping(segment.fd, segment.nbytes).view(publication.offset, nbytes, None)


@pytest.fixture
def sharing():
    with zfast.share_memory() as sharing:
        yield sharing


# ---- NumPy ----


def test_large_arrays_are_born_in_the_arena_and_small_ones_not(sharing):
    assert born_in_arena(np.empty(THRESHOLD, np.uint8))
    assert not born_in_arena(np.empty(THRESHOLD - 1, np.uint8))
    assert born_in_arena(np.ones(100_000) * 2)
    sharing.stop()
    assert not born_in_arena(np.empty(THRESHOLD, np.uint8))
    sharing.stop()


def test_pandas_results_are_born_in_the_arena(sharing):
    frame = pd.DataFrame(np.random.default_rng(0).random((50_000, 4)), columns=list("abcd"))
    result = (frame * 2 + 1).sort_values("a")
    assert born_in_arena(result["b"].to_numpy())
    sharing.stop()
    expected = (frame * 2 + 1).sort_values("a")
    pd.testing.assert_frame_equal(result, expected)


def test_large_zeroed_arrays_stay_lazy(sharing):
    zeros = np.zeros(1_000_000)
    assert not born_in_arena(zeros)
    assert not zeros.any()


def test_arrays_outlive_the_handler(sharing):
    array = np.arange(100_000)
    sharing.stop()
    gc.collect()
    assert array.sum() == 100_000 * 99_999 // 2
    live = arena.statistics().live_nbytes
    del array
    assert arena.statistics().live_nbytes < live


def test_installing_twice_is_undone_once():
    with zfast.share_memory():
        with zfast.share_memory():
            assert born_in_arena(np.empty(THRESHOLD, np.uint8))
        assert born_in_arena(np.empty(THRESHOLD, np.uint8))
    assert not born_in_arena(np.empty(THRESHOLD, np.uint8))


def test_what_the_handler_reaches():
    def make():
        return born_in_arena(np.empty(THRESHOLD, np.uint8))

    async def tasks():
        task = asyncio.create_task(asyncio.to_thread(make))
        return make(), await task

    found = {}
    with zfast.share_memory():
        found["copy of the context"] = contextvars.copy_context().run(make)
        found["asyncio"] = asyncio.run(tasks())
        found["new context"] = contextvars.Context().run(make)
        thread = threading.Thread(target=lambda: found.update(thread=make()))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            found["executor"] = pool.submit(make).result()
    inherits = bool(getattr(sys.flags, "thread_inherit_context", 0))
    assert found == {
        "copy of the context": True,
        "asyncio": (True, True),
        "new context": False,
        "thread": inherits,
        "executor": inherits,
    }


def test_arrays_are_freed_by_any_thread(sharing):
    live = arena.statistics().live_nbytes
    arrays = [np.ones(50_000) for _ in range(8)]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert arena.statistics().live_nbytes == live


@pytest.mark.parametrize(
    "sizes",
    [
        (10, 50_000),
        (50_000, 10),
        (50_000, 49_000),
        (50_000, 90_000),
        (50_000, 5_000_000),
        (30_000, 20_000_000),
        (10, 8_000_000),
    ],
)
def test_resize_across_heap_and_arena(sharing, sizes):
    before, after = sizes
    array = np.arange(before)
    array.resize(after, refcheck=False)
    kept = min(before, after)
    assert (array[:kept] == np.arange(kept)).all()
    assert not array[kept:].any()
    array[:] = 1
    assert array.sum() == after


def test_growing_step_by_step_ends_in_the_arena(sharing):
    array = np.fromiter(iter(range(300_000)), dtype=np.int64)
    assert born_in_arena(array)
    assert (array == np.arange(300_000)).all()


def test_resize_leaves_published_bytes_alone(sharing):
    array = np.arange(100_000)
    publication = publish(array)
    seen = np.frombuffer(peer_view(publication, array.nbytes), np.int64)
    array.resize(200_000, refcheck=False)
    array[:] = -1
    assert (seen == np.arange(100_000)).all()
    assert not arena.is_sealed(array.__array_interface__["data"][0], array.nbytes)
    array.resize(60_000, refcheck=False)
    assert (array == -1).all()
    assert arena.unpublish(publication.generation)


def test_beside_another_librarys_handler():
    """Set before ours it gets what is small, set after ours it is left alone."""
    run_alone(
        """
        import ctypes
        from ctypes import PYFUNCTYPE, c_char, c_size_t, c_ubyte, c_void_p, py_object

        MALLOC = PYFUNCTYPE(c_void_p, c_void_p, c_size_t)
        CALLOC = PYFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t)
        REALLOC = PYFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t)
        FREE = PYFUNCTYPE(None, c_void_p, c_void_p, c_size_t)

        class Handler(ctypes.Structure):
            _fields_ = [("name", c_char * 127), ("version", c_ubyte), ("ctx", c_void_p),
                        ("malloc", MALLOC), ("calloc", CALLOC), ("realloc", REALLOC),
                        ("free", FREE)]

        libc = ctypes.PyDLL(None)
        for name, result, arguments in [("malloc", c_void_p, [c_size_t]),
                                        ("calloc", c_void_p, [c_size_t, c_size_t]),
                                        ("realloc", c_void_p, [c_void_p, c_size_t]),
                                        ("free", None, [c_void_p])]:
            function = getattr(libc, name)
            function.restype, function.argtypes = result, arguments
        live, contexts = set(), set()

        def made(ctx, pointer):
            contexts.add(ctx)
            live.add(pointer)
            return pointer

        def gone(ctx, pointer):
            contexts.add(ctx)
            live.discard(pointer)  # what it did not make would be freed twice, or by nobody
            return pointer

        handler = Handler(
            b"another", 1, 77,
            MALLOC(lambda ctx, n: made(ctx, libc.malloc(n))),
            CALLOC(lambda ctx, n, size: made(ctx, libc.calloc(n, size))),
            REALLOC(lambda ctx, p, n: made(ctx, libc.realloc(gone(ctx, p), n))),
            FREE(lambda ctx, p, n: libc.free(gone(ctx, p))),
        )
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = py_object, [c_void_p, ctypes.c_char_p, c_void_p]
        capsule = new(ctypes.addressof(handler), b"mem_handler", None)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = c_void_p, [py_object, ctypes.c_char_p]
        from numpy._core._multiarray_umath import _ARRAY_API
        api = (c_void_p * 306).from_address(get(_ARRAY_API, None))
        set_handler = PYFUNCTYPE(py_object, py_object)(api[304])

        numpys_own = set_handler(capsule)
        sharing = zfast.share_memory()
        small, large, zeros = np.ones(10), np.ones(100_000), np.zeros(100_000)
        assert address(small) in live and address(zeros) in live
        assert address(large) not in live and arena.owns(address(large))
        small.resize(100_000, refcheck=False)
        assert arena.owns(address(small)) and (small[:10] == 1).all()
        large.resize(10, refcheck=False)
        assert address(large) in live and (large == 1).all()
        del small, large, zeros
        assert contexts == {77}
        assert arena.statistics().n_blocks == 0

        ours = set_handler(capsule)
        assert not arena.remove_handler()
        sharing.stop()
        theirs = np.ones(100_000)
        assert address(theirs) in live
        set_handler(ours)
        del theirs
        assert arena.remove_handler()
        kept = np.ones(50_000)
        assert address(kept) in live, "the handler before ours is back"
        set_handler(numpys_own)
        del kept
        """
    )


def test_arrays_and_daemon_threads_at_exit():
    script = """
        zfast.share_memory()
        keep = [np.ones(100_000) for _ in range(20)]
        published = np.ones(100_000)
        arena.publish(address(published), published.nbytes, exclusive=True)
        begun = threading.Event()

        def churn():
            zfast.share_memory()
            while True:
                np.ones(100_000)
                begun.set()

        for _ in range(3):
            threading.Thread(target=churn, daemon=True).start()
        begun.wait()
        print("done")
    """
    for _ in range(5):
        assert run_alone(script) == "done\n"


# ---- blocks and publications ----


def test_a_block_is_a_writable_buffer_until_it_is_published():
    block = arena.allocate(1000)
    assert len(block) == block.nbytes == 1000
    assert block.address % 64 == 0
    memoryview(block)[:] = b"x" * 1000
    publication = arena.publish(block.address, 1000, exclusive=True)
    assert memoryview(block).readonly
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(block, np.uint8)[0] = 1
    with pytest.raises(TypeError, match="read-write"):
        io.BytesIO(b"y").readinto(block)
    assert arena.unpublish(publication.generation)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 70 << 20])
def test_copy_in_copies_any_size(nbytes):
    source = np.resize(np.arange(256, dtype=np.uint8), nbytes)
    block = arena.copy_in(source)
    source[:] = 0
    assert bytes(block) == np.resize(np.arange(256, dtype=np.uint8), nbytes).tobytes()


def test_copy_in_wants_contiguous_bytes():
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert np.frombuffer(arena.copy_in(fortran), np.int64).tolist() == [0, 3, 1, 4, 2, 5]
    with pytest.raises((ValueError, BufferError)):
        arena.copy_in(np.ones((10, 10))[:, ::2])
    with pytest.raises(TypeError):
        arena.copy_in(7)


def test_published_bytes_outlive_their_holder(sharing):
    array = np.arange(100_000)
    nbytes = array.nbytes
    first = publish(array[10:20])
    second = publish(array, exclusive=False)
    assert first.generation != second.generation
    assert first.offset == second.offset + 80
    assert (first.segment_id, first.block_offset) == (second.segment_id, second.block_offset)
    start = array.__array_interface__["data"][0]
    del array
    seen = np.frombuffer(peer_view(second, nbytes), np.int64)
    others = [np.ones(100_000) for _ in range(20)]
    assert (seen == np.arange(100_000)).all()
    assert arena.is_sealed(start, nbytes)
    assert arena.unpublish(first.generation)
    more = [np.ones(100_000) for _ in range(20)]
    assert (seen == np.arange(100_000)).all()
    assert arena.unpublish(second.generation)
    assert not arena.is_sealed(start, nbytes)
    del others, more


def test_a_publication_ends_once(sharing):
    publication = publish(np.ones(100_000))
    n = arena.statistics().n_publications
    assert arena.unpublish(publication.generation)
    for generation in (publication.generation, 0, publication.generation + 1000, 2**64 - 1):
        assert not arena.unpublish(generation)
    assert arena.statistics().n_publications == n - 1


def test_what_is_not_published(sharing):
    heap, array = np.ones(10), np.ones(100_000)
    start = array.__array_interface__["data"][0]
    block_nbytes = -(-array.nbytes // 4096) * 4096
    assert publish(heap) is None
    assert publish(array, exclusive=False) is None
    assert arena.publish(start, 0, exclusive=True) is None
    assert arena.publish(start, block_nbytes + 1, exclusive=True) is None
    assert arena.publish(start + 4096, block_nbytes, exclusive=True) is None
    assert arena.publish(start, 2**64 - 1, exclusive=True) is None
    assert arena.publish(0, 1, exclusive=True) is None
    assert arena.publish(2**64 - 1, 1, exclusive=True) is None
    del array
    assert arena.publish(start, 8, exclusive=True) is None


# ---- views ----


def test_views_cannot_be_made_writable(sharing):
    array = np.ones(100_000)
    publication = publish(array)
    segment = arena.segment(publication.segment_index)
    mapping = arena.Mapping(segment.fd, segment.nbytes)
    view = mapping.view(publication.offset, array.nbytes, None)
    own = arena.own_view(publication.segment_index, publication.offset, array.nbytes, None)
    assert mapping.contains(view.address)
    assert not mapping.contains(own.address)
    for one in (view, own):
        assert memoryview(one).readonly
        seen = np.frombuffer(one)
        with pytest.raises(ValueError, match="WRITEABLE"):
            seen.flags.writeable = True
        with open(os.devnull, "rb") as nothing, pytest.raises((TypeError, BufferError)):
            nothing.readinto(one)
        with pytest.raises(TypeError):
            type(one)()
    assert arena.unpublish(publication.generation)


def test_a_view_keeps_its_mapping_and_its_owner(sharing):
    class Owner:
        pass

    array = np.arange(100_000)
    publication, owner = publish(array), Owner()
    gone = weakref.ref(owner)
    segment = arena.segment(publication.segment_index)
    mapping = arena.Mapping(segment.fd, segment.nbytes)
    seen = np.frombuffer(mapping.view(publication.offset, array.nbytes, owner), np.int64)
    del mapping, owner
    gc.collect()
    assert gone() is not None
    assert (seen[-3:] == array[-3:]).all()
    del seen
    gc.collect()
    assert gone() is None
    assert arena.unpublish(publication.generation)


def test_forged_descriptors_are_refused(sharing):
    array = np.ones(100_000)
    publication = publish(array)
    index = publication.segment_index
    segment = arena.segment(index)
    mapping = arena.Mapping(segment.fd, segment.nbytes)
    for offset, nbytes in [(0, segment.nbytes + 1), (segment.nbytes, 1), (2**64 - 1, 2),
                           (1, 2**64 - 1), (segment.nbytes + 1, 0)]:  # fmt: skip
        with pytest.raises(ArenaError, match="not within"):
            mapping.view(offset, nbytes, None)
        with pytest.raises(ArenaError, match="not in a published block"):
            arena.own_view(index, offset, nbytes, None)
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            mapping.view(wrong, 1, None)
    with pytest.raises(ArenaError, match="not in a published block"):
        arena.own_view(index + 1000, 0, 1, None)
    assert arena.unpublish(publication.generation)
    unpublished = np.ones(200_000)
    other = publish(unpublished)
    arena.unpublish(other.generation)
    start = unpublished.__array_interface__["data"][0]
    del unpublished
    assert not arena.is_sealed(start, 1)
    with pytest.raises(ArenaError, match="stale"):
        arena.own_view(other.segment_index, other.offset, 1, None)


def test_a_mapping_of_what_is_no_segment(tmp_path):
    short = tmp_path / "short"
    short.write_bytes(b"x" * 5000)
    with open(short, "rb") as file:
        with pytest.raises(ArenaError, match="has 5000"):
            arena.Mapping(file.fileno(), 5001)
        for nbytes in (0, -1):
            with pytest.raises(ConfigError):
                arena.Mapping(file.fileno(), nbytes)
        mapping = arena.Mapping(file.fileno(), 5000)
    assert bytes(mapping.view(4999, 1, None)) == b"x"
    assert not mapping.sealed
    with pytest.raises(ArenaError, match="no shared memory"):
        arena.Mapping(1 << 20, 10)
    read, write = os.pipe()
    with pytest.raises(ArenaError):
        arena.Mapping(read, 10)
    os.close(read)
    os.close(write)


def test_a_peer_cannot_write_or_shrink_a_segment(sharing):
    array = np.ones(100_000)
    publication = publish(array)
    segment = arena.segment(publication.segment_index)
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fd, segment.nbytes)
    with pytest.raises(OSError, match=r"not permitted|Bad file|Invalid"):
        os.write(segment.fd, b"x")
    with pytest.raises(OSError, match=r"not permitted|Bad file|Invalid"):
        os.ftruncate(segment.fd, 0)
    arena.unpublish(publication.generation)


def test_parts_of_a_segment_in_a_file_of_their_own(sharing):
    arrays = [np.full(50_000, n) for n in range(4)]
    publications = [publish(array) for array in arrays]
    segment = arena.segment(publications[0].segment_index)
    whole = arena.Mapping(segment.fd, segment.nbytes)
    seen = [
        np.frombuffer(whole.view(publication.offset, array.nbytes, None), np.int64)
        for publication, array in zip(publications, arrays, strict=True)
    ]
    addresses = [array.__array_interface__["data"][0] for array in seen]
    kept = [(publications[n].offset, arrays[n].nbytes) for n in (3, 1)]
    fd = arena.extract(segment.fd, segment.nbytes, kept)
    try:
        status = os.fstat(fd)
        assert status.st_size == segment.nbytes
        assert status.st_blocks * 512 <= 2 * (arrays[0].nbytes + 2 * mmap.PAGESIZE)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, segment.nbytes)
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(fd, b"x", 0)
        over, n_sums = threading.Event(), [0]

        def read():
            while not over.is_set():
                assert seen[1].sum() == 50_000
                n_sums[0] += 1

        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(read)
            for _ in range(200):  # from one file to the other, under its eyes
                whole.replace(fd)
                whole.replace(segment.fd)
            whole.replace(fd)
            over.set()
            reading.result()
        assert n_sums[0] > 0
        assert whole.sealed
        assert [array.__array_interface__["data"][0] for array in seen] == addresses
        assert [array[-1] for array in seen] == [0, 1, 0, 3]
        with pytest.raises(ArenaError, match="mapped again"):
            whole.replace(-1)
        assert (seen[3] == 3).all()
        with pytest.raises(ArenaError, match="Invalid"):
            arena.extract(fd, segment.nbytes, [(segment.nbytes - 1, 2)])
        with pytest.raises(ArenaError, match="Bad file"):
            arena.extract(-1, segment.nbytes, [])
    finally:
        os.close(fd)
        for publication in publications:
            arena.unpublish(publication.generation)


# ---- settings and errors ----


def test_settings_that_make_no_sense(monkeypatch):
    for wrong in ({"cap_nbytes": 0}, {"threshold_nbytes": -1}, {"segment_nbytes": 2**60},
                  {"backing": "floppy"}, {"retain_nbytes": -5}):  # fmt: skip
        with pytest.raises(ConfigError):
            arena.ArenaSettings(**wrong)
    monkeypatch.setenv("ZFAST_ARENA_NBYTES", "lots")
    with pytest.raises(ConfigError, match="ZFAST_ARENA_NBYTES"):
        arena.ArenaSettings.from_environment()


def test_it_starts_once():
    running = arena.start()
    assert arena.start() == running == arena.start(running)
    with pytest.raises(ConfigError, match="other settings"):
        arena.start(arena.ArenaSettings(cap_nbytes=12345678))


def test_errors_of_blocks():
    with pytest.raises(ConfigError):
        arena.allocate(-1)
    with pytest.raises(ArenaFullError, match="limit is reached") as caught:
        arena.allocate(2**62)
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(TypeError):
        arena.Block()
    with pytest.raises(ArenaError, match="no segment"):
        arena.segment(10**9)


def test_nothing_works_before_the_start_but_nothing_breaks():
    run_alone(
        """
        from zfast import _arena
        try:
            _arena.allocate(10)
        except ArenaError as error:
            assert "not started" in str(error)
        else:
            raise AssertionError
        assert arena.publish(4096, 1, exclusive=True) is None
        assert not arena.unpublish(1) and not arena.owns(4096)
        arena.trim()
        assert arena.statistics().mapped_nbytes == 0
        assert not arena.remove_handler()
        """
    )
