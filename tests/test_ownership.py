from __future__ import annotations

import asyncio
import collections
import ctypes
import dataclasses
import functools
import gc
import inspect
import mmap
import pickle
import sys
import threading
import tracemalloc
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfast.codec import decode, encode
from zfast.ownership import Exclusive, find_exclusive, share_results

N = 5000  # elements of an array: well above the size from which they are looked for
kept: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    kept.clear()
    _cached.cache_clear()


def keep(value: Any) -> Any:
    kept.append(value)
    return value


def frame(rows: int = N, columns: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    return pd.DataFrame(rng.random((rows, columns)), columns=list("abcdefgh")[:columns])


class Plain:
    def __init__(self, array: Any) -> None:
        self.array = array


class Slotted:
    __slots__ = ("array", "other")

    def __init__(self, array: Any) -> None:
        self.array = array
        self.other = None


@dataclasses.dataclass
class Record:
    arrays: list[Any]
    name: str


class Tagged(np.ndarray[Any, Any]):
    pass


Pair = collections.namedtuple("Pair", "left right")

# --- what may be shared: with how many blocks and at least how many bytes ------------------------

mixed = {
    "f": np.arange(N, dtype=float),
    "i": np.arange(N),
    "t": pd.date_range("2020", periods=N, freq="s", tz="Europe/Berlin"),
    "c": pd.Categorical(np.arange(N) % 500),
}


def structured() -> Any:
    return np.zeros(N, dtype=[("a", "f8"), ("b", "i4")])


def with_weakref_inside() -> Any:
    owner = Plain(np.ones(N))
    child = Plain(None)
    child.array = weakref.ref(owner)
    return [owner, child]


def cyclic() -> Any:
    value = [np.ones(N)]
    value.append(value)
    return value


def indexed() -> pd.DataFrame:
    made = frame().set_index("a")
    made.loc[made.index[3]]  # fills the caches of the index
    assert made.index.is_unique
    return made


def local_cache() -> Any:
    cache: dict[str, Any] = {"x": np.ones(N)}
    return cache["x"]


EXCLUSIVE: dict[str, Callable[[], Any]] = {
    "array": lambda: np.ones(N),
    "array without C order": lambda: np.ones((50, 100), order="F"),
    "view": lambda: np.ones(N)[10:],
    "transposed view of a slice": lambda: np.ones((100, 50)).T[3:, ::2],
    "two views of one": lambda: (lambda a: [a[:10], a[5:]])(np.ones(N)),
    "list, twice the same": lambda: [np.ones(N)] * 2,
    "dict": lambda: {"a": np.ones(N), "b": [1, "x", None]},
    "nested tuples": lambda: ((np.ones(N), 1), (2,)),
    "namedtuple": lambda: Pair(np.ones(N), None),
    "other containers": lambda: collections.deque(
        [collections.OrderedDict(a=np.ones(N)), collections.defaultdict(list, a=np.ones(N))]
    ),
    "namespace": lambda: types.SimpleNamespace(a=np.ones(N)),
    "instance": lambda: Plain(np.ones(N)),
    "instance and its dict": lambda: (lambda p: [vars(p), p, vars(p)])(Plain(np.ones(N))),
    "dict of an instance": lambda: vars(Plain(np.ones(N))),
    "instance with slots": lambda: Slotted(np.ones(N)),
    "dataclass": lambda: Record([np.ones(N)], "x"),
    "subclass": lambda: np.ones(N).view(Tagged),
    "masked": lambda: np.ma.masked_array(np.ones(N), mask=np.zeros(N, bool)),
    "structured": structured,
    "datetime64": lambda: np.arange(N).astype("M8[s]"),
    "cycle": cyclic,
    "weak references inside": with_weakref_inside,
    "from a local cache": local_cache,
    "array of arrays": lambda: np.array([np.ones(N), np.ones(N + 1), None], dtype=object),
    "2-d array of arrays": lambda: np.array([[np.ones(N), None], [None, 1]], dtype=object),
    "view of an array of arrays": lambda: np.array([np.ones(N), np.ones(3)], dtype=object)[::-1],
}
FRAMES: dict[str, Callable[[], Any]] = {
    "frame": frame,
    "frame of a dict": lambda: pd.DataFrame({name: mixed[name] * 1 for name in "fi"}),
    "mixed frame": lambda: pd.DataFrame({k: v.copy() for k, v in mixed.items()}),
    "series": lambda: frame()["a"].copy(),
    "column": lambda: frame()["a"],
    "index": lambda: pd.Index(np.arange(N) * 2),
    "multi index": lambda: frame(100 * 50).set_index(
        pd.MultiIndex.from_product([range(100), range(50)])
    ),
    "groupby": lambda: frame().assign(g=np.arange(N) // 2).groupby("g").sum(),
    "sorted": lambda: frame().sort_values("a").reset_index(drop=True),
    "index to column": lambda: frame().set_index("a").reset_index(),
    "concat": lambda: pd.concat([frame(), frame()], ignore_index=True),
    "merge": lambda: (
        frame().reset_index().merge(frame().reset_index(), on="index", suffixes=("", "_r"))
    ),
    "filtered": lambda: (lambda f: f[f["a"] > 0.3])(frame()),
    "sliced": lambda: frame().iloc[10:],
    "new column": lambda: frame().assign(z=1.5),
    "looked up": indexed,
    "frames in a list": lambda: [frame(), frame()],
    "a frame twice": lambda: (lambda f: {"x": f, "y": [f]})(frame()),
    "frame and its view": lambda: (lambda f: [f, f.iloc[5:], f["a"]])(frame()),
    "frame with objects": lambda: frame().assign(o=[("x", i) for i in range(N)]),
    "frame with text": lambda: frame().assign(s="x"),
    "frame with attrs": lambda: _with_attrs(frame()),
    "transposed frame": lambda: frame(200).T,
}


COPIES_ON_WRITE = int(pd.__version__.split(".")[0]) >= 3
if COPIES_ON_WRITE:
    EXCLUSIVE |= FRAMES
of_frames = pytest.mark.skipif(not COPIES_ON_WRITE, reason="this pandas does not copy on write")


def _with_attrs(made: pd.DataFrame) -> pd.DataFrame:
    made.attrs["source"] = {"n": 1}
    return made


@pytest.mark.parametrize("name", EXCLUSIVE)
def test_what_nobody_else_has_is_exclusive(name: str) -> None:
    make = EXCLUSIVE[name]
    find_exclusive([make()]).seal()  # fills whatever is cached at first use
    gc.collect()
    tracemalloc.start()
    try:
        before = _numpy_nbytes()
        box = [make()]
        exclusive = find_exclusive(box)
        assert exclusive
        nbytes = exclusive.nbytes
        assert _numpy_nbytes() - before >= nbytes
        with_value = _numpy_nbytes()
        exclusive.seal()
        box.clear()
        gc.collect()
        # All of it is free: nobody else held on to it.
        assert with_value - _numpy_nbytes() >= nbytes
    finally:
        tracemalloc.stop()


def _numpy_nbytes() -> int:
    domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    traces = tracemalloc.take_snapshot().filter_traces([domain]).traces
    return sum(trace.size for trace in traces)


@pytest.mark.parametrize("name", [name for name in EXCLUSIVE if name != "weak references inside"])
def test_a_sealed_value_is_equal_and_cannot_change(name: str) -> None:
    value = EXCLUSIVE[name]()
    if name == "cycle":
        value[1] = None
    plain = decode(encode(value), copy=True)
    del value
    box = [EXCLUSIVE[name]()]
    if name == "cycle":
        box[0][1] = None
    exclusive = find_exclusive(box)
    keep(exclusive._found)  # a frame that has copied lets go of it
    exclusive.seal()
    contents = [_bytes_at(*block) for block in exclusive.blocks]
    payload = encode(box[0])
    assert encode(plain).buffers == payload.buffers
    for part in _parts(box[0]):
        _write(part)
    assert [_bytes_at(*block) for block in exclusive.blocks] == contents


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series)):
        yield value
    elif isinstance(value, (list, tuple, collections.deque)):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))
    elif hasattr(value, "__dict__") and not isinstance(value, pd.Index):
        yield from _parts(list(vars(value).values()))
    elif isinstance(value, Slotted):
        yield from _parts(value.array)


def _write(value: Any) -> None:
    """Write in place wherever it is possible: only a frame's own copies are written to."""
    if isinstance(value, np.ndarray):
        if value.dtype != object:
            with pytest.raises(ValueError, match="read-only"):
                value[:1] = value[1:2]
            with pytest.raises(ValueError, match="read-only"):
                value.sort()
    elif value.ndim == 1:
        value.iloc[3:4] = value.iloc[1:2].to_numpy()
    else:
        for column in range(value.shape[1]):
            value.iloc[3:4, column] = value.iloc[1:2, column].to_numpy()


def _bytes_at(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


# --- what must be copied: who else can write to it, and how --------------------------------------


class Registry:
    cache: Any = None


@functools.lru_cache
def _cached() -> Any:
    return np.zeros(N)


def _fill(array: Any) -> None:
    array[...] = 1


def in_a_global() -> Any:
    return keep(np.zeros(N)), lambda: _fill(kept[0])


def in_a_class() -> Any:
    Registry.cache = np.zeros(N)

    def write() -> None:
        _fill(Registry.cache)
        Registry.cache = None

    return Registry.cache, write


def in_a_closure() -> Any:
    array = np.zeros(N)

    def write() -> None:
        _fill(array)

    return array, write


def in_a_default() -> Any:
    def write(array: Any = np.zeros(N)) -> None:  # noqa: B008
        _fill(array)

    return write.__defaults__[0], write  # type: ignore[index]


def in_an_lru_cache() -> Any:
    return _cached(), lambda: _fill(_cached())


def in_a_generator() -> Any:
    def suspended() -> Iterator[Any]:
        array = np.zeros(N)
        yield array
        _fill(array)
        yield None

    generator = keep(suspended())
    return next(generator), lambda: next(generator)


def in_a_coroutine() -> Any:
    class Suspend:
        def __await__(self) -> Iterator[None]:
            yield

    async def suspended(array: Any) -> None:
        await Suspend()
        _fill(array)

    array = np.zeros(N)
    coroutine = suspended(array)
    coroutine.send(None)

    def write() -> None:
        with pytest.raises(StopIteration):
            coroutine.send(None)

    return array, write


def in_another_thread() -> Any:
    array = np.zeros(N)
    started, go, done = threading.Event(), threading.Event(), threading.Event()

    def work(array: Any) -> None:
        started.set()
        go.wait(10)
        _fill(array)
        del array
        done.set()

    thread = threading.Thread(target=work, args=(array,))
    thread.start()
    started.wait(10)

    def write() -> None:
        go.set()
        done.wait(10)
        thread.join()

    return array, write


def in_a_traceback() -> Any:
    def fail() -> None:
        array = keep(np.zeros(N))  # for the return below
        raise ValueError(array.size)

    try:
        fail()
    except ValueError as error:
        caught = error
    array = kept.pop()

    def write() -> None:
        _fill(caught.__traceback__.tb_next.tb_frame.f_locals["array"])  # type: ignore[union-attr]

    return array, write


def in_a_list_that_is_kept() -> Any:
    return keep([np.zeros(N)]), lambda: _fill(kept[0][0])


def in_a_dict_of_an_instance() -> Any:
    value = Plain(np.zeros(N))
    keep(vars(value))
    return value, lambda: _fill(kept[0]["array"])


def in_a_dict_of_an_instance_of_a_container() -> Any:
    class Items(list[Any]):
        pass

    value = Items()
    value.array = np.zeros(N)  # type: ignore[attr-defined]
    keep(vars(value))
    return [value], lambda: _fill(kept[0]["array"])


def in_a_dict_of_an_instance_beside_it() -> Any:
    value = Plain(np.zeros(N))
    keep(vars(value))
    return [vars(value), value], lambda: _fill(kept[0]["array"])


def by_an_instance_that_is_kept() -> Any:
    return keep(Slotted(np.zeros(N))), lambda: _fill(kept[0].array)


def by_a_bound_method() -> Any:
    value = Plain(np.zeros(N))
    keep(value.__getattribute__)
    return value, lambda: _fill(kept[0]("array"))


def in_an_array_of_objects() -> Any:
    value = np.array([np.zeros(N), None], dtype=object)
    keep(value)
    return value[::-1], lambda: _fill(kept[0][0])


def a_view_kept() -> Any:
    value = np.zeros(N)
    keep(value[10:20])
    return value, lambda: _fill(kept[0])


def the_base_kept() -> Any:
    return keep(np.zeros(N))[10:4000], lambda: _fill(kept[0])


def a_view_of_the_same_base_kept() -> Any:
    value = np.zeros(N)
    keep(value.reshape(50, 100).T)
    return value[5:], lambda: _fill(kept[0])


def a_memoryview_kept() -> Any:
    value = np.zeros(N)
    keep(memoryview(value))
    return value, lambda: kept[0].__setitem__(0, 1.0)


def a_memoryview_inside() -> Any:
    value = np.zeros(N)
    box = [value, memoryview(value)]
    del value
    keep(weakref.ref(box[1]))
    return box, lambda: kept[0]().__setitem__(0, 1.0)


def a_pickle_buffer_kept() -> Any:
    value = np.zeros(N)
    keep(pickle.PickleBuffer(value))
    return value, lambda: memoryview(kept[0]).cast("B").__setitem__(1, 1)


def a_ctypes_array_kept() -> Any:
    value = np.zeros(N)
    keep(np.ctypeslib.as_ctypes(value))
    return value, lambda: kept[0].__setitem__(0, 1.0)


def a_ctypes_pointer_kept() -> Any:
    value = np.zeros(N)
    keep(value.ctypes.data_as(ctypes.POINTER(ctypes.c_double)))
    return value, lambda: kept[0].__setitem__(0, 1.0)


def a_dlpack_kept() -> Any:
    value = np.zeros(N)
    keep(np.from_dlpack(value))
    return value, lambda: _fill(np.asarray(kept[0]).base and _writable(kept[0]))


def _writable(array: Any) -> Any:
    return np.ctypeslib.as_array((ctypes.c_double * array.size).from_address(array.ctypes.data))


def an_arrow_buffer_kept() -> Any:
    value = np.zeros(N)
    keep(pa.py_buffer(value))
    return value, lambda: memoryview(kept[0]).cast("d").__setitem__(0, 1.0)


def a_scalar_of_a_structure_kept() -> Any:
    value = np.zeros(N, dtype=[("a", "f8"), ("b", "f8")])
    keep(value[0])
    return value, lambda: kept[0].__setitem__("a", 1.0)


def an_iterator_kept() -> Any:
    value = np.zeros(N)
    keep(value.flat)
    return value, lambda: kept[0].__setitem__(0, 1.0)


def a_mask_kept() -> Any:
    value = np.ma.masked_array(np.zeros(N), mask=np.ma.nomask)
    keep(value.data)
    return value, lambda: _fill(kept[0])


def weakly_kept() -> Any:
    value = np.zeros(N)
    keep(weakref.ref(value))
    return value, lambda: _fill(kept[0]())


def an_instance_weakly_kept() -> Any:
    value = Plain(np.zeros(N))
    keep(weakref.WeakSet([value]))
    return value, lambda: _fill(next(iter(kept[0])).array)


def the_array_of_a_frame_kept() -> Any:
    array = keep(np.zeros((N, 3)))
    return pd.DataFrame(array, copy=False), lambda: _fill(kept[0])


def the_array_of_an_index_kept() -> Any:
    array = keep(np.zeros(N))
    return pd.Index(array, copy=False), lambda: _fill(kept[0])


def the_block_of_a_frame_kept() -> Any:
    made = pd.DataFrame(np.zeros((N, 3)))
    keep(made._mgr.blocks[0])
    return made, lambda: _fill(kept[0].values)


def the_dates_of_a_frame_kept() -> Any:
    made = pd.DataFrame({"t": np.zeros(N, "M8[ns]")})
    keep(made._mgr.blocks[0].values)
    return made, lambda: kept[0].__setitem__(0, pd.Timestamp(5))


def the_attrs_of_a_frame_kept() -> Any:
    made = frame(5)
    made.attrs["array"] = np.zeros(N)
    keep(made.attrs)
    return made, lambda: _fill(kept[0]["array"])


def over_a_bytearray() -> Any:
    keep(bytearray(8 * N))
    return np.frombuffer(kept[0]), lambda: kept[0].__setitem__(1, 1)


def over_a_mapping() -> Any:
    keep(mmap.mmap(-1, 8 * N))
    return np.frombuffer(kept[0]), lambda: kept[0].__setitem__(1, 1)


SHARED = [
    in_a_global,
    in_a_class,
    in_a_closure,
    in_a_default,
    in_an_lru_cache,
    in_a_generator,
    in_a_coroutine,
    in_another_thread,
    in_a_traceback,
    in_a_list_that_is_kept,
    in_a_dict_of_an_instance,
    in_a_dict_of_an_instance_of_a_container,
    in_a_dict_of_an_instance_beside_it,
    by_an_instance_that_is_kept,
    by_a_bound_method,
    in_an_array_of_objects,
    a_view_kept,
    the_base_kept,
    a_view_of_the_same_base_kept,
    a_memoryview_kept,
    a_memoryview_inside,
    a_pickle_buffer_kept,
    a_ctypes_array_kept,
    a_ctypes_pointer_kept,
    a_dlpack_kept,
    an_arrow_buffer_kept,
    a_scalar_of_a_structure_kept,
    an_iterator_kept,
    a_mask_kept,
    weakly_kept,
    an_instance_weakly_kept,
    the_array_of_a_frame_kept,
    the_array_of_an_index_kept,
    the_block_of_a_frame_kept,
    the_dates_of_a_frame_kept,
    the_attrs_of_a_frame_kept,
    over_a_bytearray,
    over_a_mapping,
]


@pytest.mark.parametrize("make", SHARED, ids=lambda make: make.__name__)
def test_what_somebody_else_can_write_to_is_copied(make: Callable[[], Any]) -> None:
    box = list(make())
    write = box.pop()
    exclusive = find_exclusive(box)
    assert not exclusive
    exclusive.seal()
    before = _content(box[0])
    write()
    assert _content(box[0]) != before, "the alias is none: nothing was tested"


def _content(value: Any) -> Any:
    payload = encode(value)
    return payload.header, [bytes(buffer) for buffer in payload.buffers]


def frame_kept() -> Any:
    return keep(frame())


def frame_in_a_list_kept() -> Any:
    return keep([frame()])


def index_kept() -> Any:
    return frame().set_axis(keep(pd.Index(np.arange(N) * 2)))


@of_frames
@pytest.mark.parametrize("make", [frame_kept, frame_in_a_list_kept, index_kept])
def test_a_frame_that_is_kept_copies_on_write(make: Callable[[], Any]) -> None:
    box = [make()]
    exclusive = find_exclusive(box)
    other = kept[0]
    keep(exclusive._found)  # a frame that has copied lets go of it
    exclusive.seal()
    assert exclusive
    contents = [_bytes_at(*block) for block in exclusive.blocks]
    for part in _parts(other):
        _write(part)
        part.loc[part["b"] > 0.5, "b"] = 0.25
        part.clip(0.3, 0.6, inplace=True)
        part["a"] = 3.0
    if make is index_kept:
        column = other.to_series().reset_index(drop=True)
        column.iloc[0] = 77
        column = other.to_frame(name="x")
        column.iloc[0, 0] = 77
    assert [_bytes_at(*block) for block in exclusive.blocks] == contents


@pytest.mark.parametrize(
    "derive",
    [
        lambda made: made["a"],
        lambda made: made.iloc[:10],
        lambda made: made.copy(deep=False),
        lambda made: made.rename(columns=str.upper),
        lambda made: made.reset_index(drop=True),
        lambda made: made.groupby("a"),
        lambda made: made.to_numpy(),
        lambda made: made.values,
        lambda made: memoryview(np.asarray(made)),
    ],
)
def test_a_part_of_a_frame_that_is_kept_is_copied(derive: Callable[[Any], Any]) -> None:
    def make() -> Any:
        made = frame()
        keep(derive(made))
        return made

    assert not find_exclusive([make()])


def arrow() -> Any:
    return pa.array(np.arange(N))


@pytest.mark.parametrize(
    "make",
    [
        arrow,
        lambda: pl.DataFrame({"x": np.arange(N)}),
        lambda: pl.Series(np.arange(N)).to_numpy(),
        lambda: arrow().to_numpy(),
        lambda: pd.Series(arrow(), dtype=pd.ArrowDtype(pa.int64())),
        lambda: bytearray(8 * N),
        lambda: np.frombuffer(bytes(8 * N)),
        lambda: [threading.Lock(), 1, "x", len, N],
        lambda: (row for row in np.zeros((N, 2))),
        lambda: np.ones(3),
        list,
        lambda: None,
    ],
)
def test_what_is_not_numpys_own_memory_is_copied(make: Callable[[], Any]) -> None:
    exclusive = find_exclusive([make()])
    assert not exclusive
    assert exclusive.blocks == []
    exclusive.seal()


def test_a_memmap_is_copied(tmp_path: Path) -> None:
    def make() -> Any:
        return np.memmap(tmp_path / "m", dtype=float, mode="w+", shape=N)

    assert not find_exclusive([make()])


def test_a_lock_beside_an_array_does_no_harm() -> None:
    assert find_exclusive([[threading.Lock(), sys.stderr, np.ones(N)]])


@of_frames
def test_the_values_of_a_nullable_column_are_copied_and_its_mask_is_not() -> None:
    box = [pd.DataFrame({"x": pd.array(np.arange(N), dtype="Int64")})]
    exclusive = find_exclusive(box)
    exclusive.seal()
    assert [nbytes for _, nbytes in exclusive.blocks] == [N]
    assert int(box[0]["x"].cumsum().iloc[-1]) == N * (N - 1) // 2


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_does_not_copy_on_write_is_copied(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfast.ownership._walk.copies_on_write", lambda: False)
    exclusive = find_exclusive([FRAMES[name]()])
    assert not exclusive


def test_without_the_gil_everything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not find_exclusive([np.ones(N)])


# --- how far it looks ----------------------------------------------------------------------------


def test_beyond_the_limit_it_is_copied() -> None:
    def make() -> Any:
        return [np.ones(N), [[np.ones(N)]], *range(1000)]

    assert len(find_exclusive([make()]).blocks) == 2
    assert not find_exclusive([make()], max_references=100)
    # The first array is found, and so is all that refers to it.
    assert len(find_exclusive([make()], max_references=1100).blocks) == 2
    assert not find_exclusive([[np.ones(N)] * 2], max_references=1)


def test_a_reference_beyond_the_limit_is_not_overlooked() -> None:
    def make() -> Any:
        array = np.ones(N)
        deep: Any = [array]
        for _ in range(50):
            deep = [deep]
        return [array, deep]

    assert find_exclusive([make()])
    assert not find_exclusive([make()], max_references=20)


def test_a_small_part_of_a_large_block_is_copied() -> None:
    box = [np.ones(8 * N)]
    exclusive = find_exclusive(box)
    ((address, nbytes),) = exclusive.blocks
    assert exclusive.block_of(address + 8, nbytes - 8) == (address, nbytes)
    assert exclusive.block_of(address + 8, nbytes) is None
    assert exclusive.block_of(address - 8, 16) is None
    assert Exclusive().block_of(address, 8) is None
    half = nbytes // 2
    assert exclusive.shareable([(address, nbytes)]) == [True]
    assert exclusive.shareable([(address, half), (1, 5)]) == [True, False]
    assert exclusive.shareable([(address, half - 1)]) == [False]
    # Copies of them would take as much.
    assert exclusive.shareable([(address, half - 1), (address + half, half)]) == [True, True]


# --- the wrapper ---------------------------------------------------------------------------------


@of_frames
def test_a_wrapped_function_gives_sealed_results() -> None:
    seen: list[Exclusive] = []

    def make(rows: int, *, columns: int = 2) -> pd.DataFrame:
        """Makes a frame."""
        return frame(rows, columns)

    wrapped = share_results(make, seen.append)
    assert wrapped.__doc__ == make.__doc__
    assert wrapped.__name__ == "make"
    assert wrapped.__code__ is make.__code__
    assert inspect.signature(wrapped) == inspect.signature(make)
    value = wrapped(N, columns=3)
    assert [exclusive.nbytes for exclusive in seen] == [N * 3 * 8]
    assert not value._mgr.blocks[0].values.flags.writeable
    value.iloc[0, 0] = 5.0
    assert value.iloc[0, 0] == 5.0


def test_a_coroutine_function_is_wrapped() -> None:
    seen: list[Exclusive] = []

    async def make() -> Any:
        await asyncio.sleep(0)
        return [np.ones(N)]

    wrapped = share_results(make, seen.append)
    (array,) = asyncio.run(wrapped())
    assert not array.flags.writeable
    assert len(seen) == 1
    assert seen[0]


def test_generator_functions_are_left_alone() -> None:
    def generate() -> Iterator[int]:
        yield 1

    async def generate_async() -> Any:
        yield 1

    for function in (generate, generate_async):
        assert share_results(function, kept.append) is function


def test_an_input_that_is_returned_is_the_callers_too() -> None:
    seen: list[Exclusive] = []
    array = np.ones(N)
    assert share_results(lambda x: x, seen.append)(array) is array
    assert share_results(lambda x: [x[1:]], seen.append)(array)
    assert share_results(lambda **inputs: inputs, seen.append)(x=array)
    assert not any(seen)
    assert array.flags.writeable


@of_frames
def test_an_input_with_a_new_column_shares_the_column() -> None:
    seen: list[Exclusive] = []

    def add(made: pd.DataFrame) -> pd.DataFrame:
        made["z"] = np.arange(N) * 2.0
        return made

    given = frame()
    plain = given.to_numpy()  # another way to the columns that were there before
    result = share_results(add, seen.append)(given)
    assert result is given
    assert seen[0].nbytes == N * 8
    assert plain.base is not None


def test_nothing_is_looked_for_where_it_is_not_worth_it() -> None:
    seen: list[Exclusive] = []
    wrapped = share_results(lambda: np.ones(N), seen.append, worthwhile=lambda: False)
    assert wrapped().flags.writeable
    assert seen == []


def test_methods_and_callables_are_wrapped() -> None:
    seen: list[Exclusive] = []

    class Maker:
        def make(self) -> Any:
            return np.ones(N)

        def __call__(self) -> Any:
            return np.ones(N)

    for function in (Maker().make, Maker(), functools.partial(np.ones, N)):
        assert not share_results(function, seen.append)().flags.writeable
    assert all(seen)


def test_an_error_passes() -> None:
    with pytest.raises(ZeroDivisionError):
        share_results(lambda: 1 // 0, kept.append)()
    assert kept == []


def test_threads_that_take_and_give_back_are_never_overlooked() -> None:
    """One thread passes arrays from one place to another while they are judged."""
    stop = threading.Event()
    shelf: list[Any] = [[None]]

    def juggle() -> None:
        while not stop.is_set():
            place = shelf[0]
            array = place[0]
            if array is not None:
                place[0] = None
                shelf[0] = [None]
                held.append(array)

    held: list[Any] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=juggle)
    thread.start()
    try:
        for _ in range(300):
            box = [[np.zeros(N), [None]]]
            shelf[0] = box[0]
            exclusive = find_exclusive(box)
            exclusive.seal()
            assert not exclusive
            while shelf[0] is box[0]:
                pass
            held.clear()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


# --- any graph, any aliases ----------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Any], list[int]]:
    """Objects that refer to earlier ones, and which of them somebody else keeps."""
    count = draw(st.integers(2, 12))
    recipe = [
        (
            draw(
                st.sampled_from(["array", "view", "list", "dict", "instance", "objects", "tuple"])
            ),
            draw(st.lists(st.integers(0, max(index - 1, 0)), max_size=4)),
        )
        for index in range(count)
    ]
    return recipe, draw(st.lists(st.integers(0, count - 1), max_size=2))


def build(recipe: list[Any]) -> list[Any]:
    made: list[Any] = []
    for kind, earlier in recipe:
        parts = [made[index] for index in earlier if index < len(made)]
        arrays = [part for part in parts if isinstance(part, np.ndarray) and part.dtype != object]
        if kind == "view" and arrays:
            made.append(arrays[0][1:])
        elif kind in ("array", "view"):
            made.append(np.zeros(N))
        elif kind == "list":
            made.append(parts)
        elif kind == "tuple":
            made.append((*parts, len(made)))
        elif kind == "dict":
            made.append(dict(enumerate(parts)))
        elif kind == "instance":
            made.append(Plain(parts))
        else:
            objects = np.empty(len(parts), dtype=object)
            objects[:] = parts
            made.append(objects)
    return made


def reach(value: Any, into: dict[int, Any]) -> None:
    """All memory that can be reached from a value, by the address of its first owner."""
    if id(value) in into:
        return
    into[id(value)] = value
    if isinstance(value, np.ndarray):
        if value.base is not None:
            reach(value.base, into)
        if value.dtype == object:
            for part in value:
                reach(part, into)
    elif isinstance(value, dict):
        for part in value.values():
            reach(part, into)
    elif isinstance(value, (list, tuple)):
        for part in value:
            reach(part, into)
    elif isinstance(value, Plain):
        reach(value.array, into)


def owners(values: list[Any]) -> set[int]:
    into: dict[int, Any] = {}
    for value in values:
        reach(value, into)
    return {
        part.ctypes.data
        for part in into.values()
        if isinstance(part, np.ndarray) and part.base is None and part.dtype != object
    }


@given(graphs())
@settings(max_examples=400)
def test_any_graph(graph: tuple[list[Any], list[int]]) -> None:
    recipe, aliased = graph
    made = build(recipe)
    aliases = [made[index] for index in aliased]
    box = [made[-1]]
    expected = owners(box) - owners(aliases)
    del made
    exclusive = find_exclusive(box)
    assert {address for address, _ in exclusive.blocks} == expected
    exclusive.seal()
    before = [_bytes_at(*block) for block in exclusive.blocks]
    into: dict[int, Any] = {}
    reach(aliases, into)
    for part in into.values():
        if isinstance(part, np.ndarray) and part.dtype != object:
            _fill(part)
    assert [_bytes_at(*block) for block in exclusive.blocks] == before
