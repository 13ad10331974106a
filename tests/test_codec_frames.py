"""The codec: pandas, pyarrow and polars."""

from __future__ import annotations

import copy as copying
import datetime as dt
import gc
import hashlib
import subprocess
import sys
import weakref

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal

from zfast.codec import Payload, decode, encode
from zfast.codec import _arrow as codec_arrow
from zfast.codec import _pandas as codec_pandas

N = 2000
TEXT = [f"text number {i} æ" for i in range(N)]


def moved(payload: Payload, shift: int = 0) -> Payload:
    """What a transport delivers: other memory, ``shift`` bytes past a multiple of 64."""
    buffers = []
    for buffer in payload.buffers:
        room = np.zeros(buffer.nbytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + shift
        room[start : start + buffer.nbytes] = buffer
        buffers.append(memoryview(room)[start : start + buffer.nbytes])
    return Payload(bytes(payload.header), buffers)


def travel(value, shift=0, copy=False):
    return decode(moved(encode(value), shift), copy=copy)


def addresses(buffers):
    return {np.frombuffer(buffer, np.uint8).ctypes.data for buffer in buffers}


def digest(payload):
    return [hashlib.sha256(buffer).hexdigest() for buffer in payload.buffers]


# ---- pandas --------------------------------------------------------------------------------

I = np.arange(N)  # noqa: E741
SERIES = {
    "int": pd.Series(I, name="n"),
    "float32": pd.Series(I, dtype="f4", index=I[::-1].astype("f8")),
    "str": pd.Series(TEXT),
    "str with NA": pd.Series([None, "a"] * (N // 2), dtype="str"),
    "python string": pd.Series(TEXT, dtype=pd.StringDtype("python")),
    "nullable string": pd.Series(TEXT, dtype=pd.StringDtype("pyarrow", na_value=pd.NA)),
    "object": pd.Series(["a", 1, None, [2]] * 10, dtype=object),
    "arrays": pd.Series([np.arange(3), np.arange(2)] * 10),
    "category": pd.Series(list("abca") * 500, dtype="category"),
    "ordered": pd.Series(pd.Categorical([3, 1] * 900, categories=[3, 2, 1], ordered=True)),
    "Int64": pd.Series([1, None] * 900, dtype="Int64"),
    "boolean": pd.Series([True, None] * 900, dtype="boolean"),
    "interval": pd.Series(pd.interval_range(0, N)),
    "period": pd.Series(pd.period_range("2000", periods=N, freq="h")),
    "datetime": pd.Series(pd.date_range("2000", periods=N, freq="s")),
    "datetime tz": pd.Series(pd.date_range("2000", periods=N, freq="s", tz="Europe/Oslo")),
    "timedelta": pd.Series(pd.timedelta_range("1s", periods=N)),
    "sparse": pd.Series(pd.arrays.SparseArray([0, 0, 1] * 900)),
    "arrow int": pd.Series(I, dtype="int64[pyarrow]"),
    "arrow list": pd.Series([[1, 2], None] * 900, dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "arrow time": pd.Series([dt.time(1, 2)] * 9, dtype=pd.ArrowDtype(pa.time64("us"))),
    "no chunks": pd.Series(
        pd.arrays.ArrowExtensionArray(pa.chunked_array([], pa.decimal128(5, 2)))
    ),
    "empty": pd.Series([], dtype="f8"),
    "empty str": pd.Series([], dtype="str"),
}
EVERY_SORT = pd.DataFrame(
    {name: s.reset_index(drop=True) for name, s in SERIES.items() if len(s) == N}
)
EVERY_SORT.attrs = {"source": "test", "n": [1]}
FRAMES = {
    "every sort": EVERY_SORT,
    "one block": pd.DataFrame(np.arange(9000.0).reshape(-1, 3), columns=list("abc")),
    "row slice": EVERY_SORT.iloc[500:510],
    "stepped": EVERY_SORT.iloc[::3],
    "column slice": pd.DataFrame(np.arange(9000.0).reshape(-1, 9)).iloc[:, 2:5],
    "MultiIndex": pd.DataFrame(
        np.arange(3600.0).reshape(900, 4),
        index=pd.MultiIndex.from_product([range(30), TEXT[:30]], names=["i", "t"]),
        columns=pd.MultiIndex.from_product([["x", "y"], [1, 2]]),
    ),
    "duplicated names": pd.DataFrame(np.arange(6).reshape(2, 3), columns=["a", "a", "b"]),
    "no columns": pd.DataFrame(index=range(5)),
    "no rows": EVERY_SORT.iloc[:0],
    "nothing": pd.DataFrame(),
    "timed": pd.DataFrame({"a": I}, index=pd.date_range("2000", periods=N, freq="D", tz="UTC")),
    "flags": pd.DataFrame({"a": I}).set_flags(allows_duplicate_labels=False),
}


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 8])
@pytest.mark.parametrize("name", SERIES)
def test_series(name, shift, copy):
    back = travel([SERIES[name]], shift, copy)[0]
    assert_series_equal(back, SERIES[name])
    assert back.dtype == SERIES[name].dtype


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 8])
@pytest.mark.parametrize("name", FRAMES)
def test_frames(name, shift, copy):
    value = FRAMES[name]
    back = travel({"in": [value]}, shift, copy)["in"][0]
    assert_frame_equal(back, value, check_freq=True)
    assert_index_equal(back.columns, value.columns)
    assert back.attrs == value.attrs
    assert back.flags == value.flags


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(3, 9, 2, name="r"),
        pd.Index(I),
        pd.Index(TEXT, name="t"),
        pd.CategoricalIndex(list("ab") * 900),
        pd.date_range("2000", periods=N, freq="B"),
        pd.period_range("2000", periods=N, freq="D"),
        pd.interval_range(0, N),
        pd.MultiIndex.from_arrays([I, TEXT], names=["a", None]),
    ],
    ids=lambda index: type(index).__name__,
)
def test_indexes(index):
    back = travel(index, 1)
    assert_index_equal(back, index, exact=True)
    assert back.name == index.name
    assert getattr(back, "freq", None) == getattr(index, "freq", None)
    np.testing.assert_array_equal(back.get_loc(index[2]), index.get_loc(index[2]))


class Survey(pd.DataFrame):
    _metadata = ["agency"]  # noqa: RUF012

    @property
    def _constructor(self):
        return Survey


def test_subclasses_of_frames():
    value = Survey({"a": I})
    value.agency = "x"
    back = travel(value)
    assert type(back) is Survey
    assert back.agency == "x"
    back.loc[0, "a"] = 5
    assert back.loc[0, "a"] == 5


def test_frames_are_not_copied():
    value = pd.DataFrame({"a": I, "b": I * 1.5, "s": TEXT, "c": pd.Series(TEXT, dtype="category")})
    payload = encode(value)
    assert len(payload.header) < 6000
    sent = addresses(payload.buffers)
    assert value["a"].to_numpy().ctypes.data in sent
    text = value["s"].array._pa_array.chunk(0).buffers()[2]
    assert text.address in sent

    arrived = moved(payload)
    got = addresses(arrived.buffers)
    back = decode(arrived)
    assert back["b"].to_numpy().ctypes.data in got
    assert back["s"].array._pa_array.chunk(0).buffers()[2].address in got


def test_slices_do_not_send_their_parents():
    parent = pd.DataFrame({"a": np.arange(100_000), "s": np.repeat(TEXT, 50)})
    for part in (parent.iloc[10:20], parent[parent["a"] == 7], parent.tail(3)):
        assert encode(part).nbytes < 4000
    assert encode(parent["s"].iloc[5:15]).nbytes < 2000
    half = encode(parent.iloc[:50_000]).nbytes
    assert half < 0.6 * encode(parent).nbytes


# ---- writing to received frames ------------------------------------------------------------


def set_iloc(df):
    df.iloc[0, 0] = -1


def set_at(df):
    df.at[3, "b"] = -1.0


def set_loc(df):
    df.loc[df["a"] > 5, "b"] = 0.0


def set_text(df):
    df.loc[0, "s"] = "new"


def set_extension(df):
    df.loc[0, "i"] = 9


def set_category(df):
    df.loc[0, "c"] = "b"


def set_time(df):
    df.loc[0, "t"] = pd.Timestamp("1999-01-01")


def fill(df):
    df.fillna({"b": 0.0}, inplace=True)


def replace(df):
    df.replace({"a": {1: 100}}, inplace=True)


def new_column(df):
    df["new"] = df["a"] * 2
    df.iloc[0, df.columns.get_loc("new")] = 7


def sort(df):
    df.sort_values("a", ascending=False, inplace=True)
    df.iloc[0, 0] = -1


def add(df):
    df["a"] += 1
    df.loc[0, "a"] = 3


def where(df):
    df.mask(df["a"] > 3, inplace=True)


def drop(df):
    df.drop(columns="b", inplace=True)
    df.iloc[0, 0] = -1


def insert(df):
    df.insert(0, "z", df["a"])
    df.iloc[0, 0] = -1


def update(df):
    df.update(pd.DataFrame({"b": [99.0]}))


def rows(df):
    df.loc[len(df)] = df.iloc[0]


WRITES = [set_iloc, set_at, set_loc, set_text, set_extension, set_category, set_time]
WRITES += [fill, replace, new_column, sort, add, where, drop, insert, update, rows]


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "a": np.arange(1000),
            "b": np.where(np.arange(1000) % 7, 1.5, np.nan),
            "s": TEXT[:1000],
            "i": pd.array([1, None] * 500, dtype="Int64"),
            "c": pd.Categorical(list("ab") * 500),
            "t": pd.date_range("2000", periods=1000),
            "a2": np.arange(1000),
        }
    )


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas 3.1 deprecates it
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_received_frames_can_be_written_to(frame, write, copy):
    arrived = moved(encode({"in": [frame]}))
    before = digest(arrived)
    back = decode(arrived, copy=copy)["in"][0]
    again = decode(arrived)["in"][0]
    write(back)
    untouched = frame.copy()
    write(frame)
    assert_frame_equal(back, frame)
    assert digest(arrived) == before
    assert_frame_equal(again, untouched)


DERIVED = {
    "rename": lambda df: df.rename(columns={"a": "A"}),
    "slice": lambda df: df.iloc[10:20],
    "columns": lambda df: df[["a", "b", "a2"]],
    "drop": lambda df: df.drop(columns="s"),
    "set_index": lambda df: df.set_index("s"),
    "reset_index": lambda df: df.set_index("a2").reset_index(),
    "shallow": lambda df: df.copy(deep=False),
    "assign": lambda df: df.assign(x=1),
    "pipe": lambda df: pd.DataFrame(df),
    "concat": lambda df: pd.concat([df, df.add_suffix("_2")], axis=1),
}


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_derived_can_be_written_to_after_the_frame_is_gone(frame, name):
    arrived = moved(encode(frame))
    before = digest(arrived)
    derived = DERIVED[name](decode(arrived))
    gc.collect()
    expected = DERIVED[name](frame)
    for table in (derived, expected):
        table.iloc[0, 0] = -5
        table.iloc[1, 1] = -6
    assert_frame_equal(derived, expected)
    assert digest(arrived) == before


def test_columns_and_series_can_be_written_to(frame):
    arrived = moved(encode([frame, frame["a"], pd.Index(I, name="n")]))
    before = digest(arrived)
    table, series, index = decode(arrived)
    column = table["b"]
    del table
    column.iloc[0] = 8.0
    column.fillna(0.0, inplace=True)
    series[3] = 77
    made = index.to_frame(index=False)
    made.iloc[0, 0] = 5
    as_series = index.to_series().reset_index(drop=True)
    del index
    as_series.iloc[0] = 5
    assert (column[0], column[7], series[3], made.iloc[0, 0]) == (8.0, 0.0, 77, 5)
    assert digest(arrived) == before


def test_an_index_that_becomes_a_column_can_be_written_to():
    value = pd.DataFrame({"v": I * 1.0}, index=pd.Index(I[::-1].copy(), name="k"))
    arrived = moved(encode(value))
    before = digest(arrived)
    back = decode(arrived).reset_index()
    back.loc[0, "k"] = -1
    assert back.loc[0, "k"] == -1
    assert digest(arrived) == before


def test_bare_arrays_of_a_received_frame_are_read_only(frame):
    back = travel(frame)
    with pytest.raises(ValueError, match="read-only"):
        back["a"].to_numpy()[0] = 1


def test_received_frames_can_be_sent_and_copied_again(frame):
    first = encode(frame)
    back = decode(moved(first))
    second = encode(back)
    assert second.nbytes <= first.nbytes
    assert addresses(second.buffers) >= {back["a"].to_numpy().ctypes.data}
    for duplicate in (back.copy(), copying.copy(back), copying.deepcopy(back), travel(back)):
        assert_frame_equal(duplicate, frame)
        assert encode(duplicate).nbytes <= first.nbytes
        duplicate.iloc[0, 0] = -1
    assert_frame_equal(back, frame)
    assert not [name for name in dir(back) if "zfast" in name]


@pytest.mark.parametrize("copy", [False, True])
def test_the_memory_goes_with_the_frame(frame, copy):
    buffers = [np.array(buffer) for buffer in encode(frame).buffers]
    payload = Payload(encode(frame).header, [memoryview(buffer) for buffer in buffers])
    back = decode(payload, copy=copy)
    watched = [weakref.ref(buffer) for buffer in buffers]
    del buffers, payload
    assert any(ref() is not None for ref in watched) is not copy
    back.iloc[0, 0] = -1
    back.loc[0, "s"] = "x"
    gc.collect()
    del back
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_a_write_lets_go_of_the_memory_it_replaced():
    payload = encode(pd.DataFrame({"a": np.arange(5000)}))
    buffer = np.array(payload.buffers[0])
    ref = weakref.ref(buffer)
    back = decode(Payload(payload.header, [memoryview(buffer)]))
    del buffer
    assert ref() is not None
    back.iloc[0, 0] = 1
    gc.collect()
    assert ref() is None


def test_private_frames_are_written_to_in_place():
    back = travel(pd.DataFrame({"a": np.arange(5000)}), copy=True)
    address = back["a"].to_numpy().ctypes.data
    back.iloc[0, 0] = 9
    assert back["a"].to_numpy().ctypes.data == address


def test_without_copy_on_write_frames_are_copied_once(frame, monkeypatch):
    monkeypatch.setattr(codec_pandas, "copies_on_write", lambda: False)
    arrived = moved(encode(frame))
    before = digest(arrived)
    back = decode(arrived)
    assert not addresses([back["a"].to_numpy()]) & addresses(arrived.buffers)
    back.iloc[0, 0] = -1
    assert back.iloc[0, 0] == -1
    assert digest(arrived) == before


def test_calculations_on_received_frames(frame):
    back = travel(frame)
    for work in (
        lambda df: df.groupby("c", observed=True)["a"].sum(),
        lambda df: df.merge(df, on="a")["b_x"],
        lambda df: df.sort_values("b")["a"],
        lambda df: df.set_index("s").loc[TEXT[5]],
        lambda df: df["a"].rolling(3).mean(),
        lambda df: df["t"].dt.year,
        lambda df: df["b"].rank(),
        lambda df: df["s"].str.upper(),
        lambda df: df["a"].value_counts().sort_index(),
        lambda df: df["b"].quantile([0.1, 0.5]),
        lambda df: df["i"].cumsum(),
        lambda df: df.set_index("t")["b"].resample("W").mean(),
    ):
        assert_series_equal(work(back), work(frame))


# ---- pyarrow -------------------------------------------------------------------------------

ARROW = {
    "int": pa.array(I),
    "nulls": pa.array([1, None] * N),
    "bool": pa.array([True, None, False] * N),
    "string": pa.array(TEXT),
    "large": pa.array(TEXT, pa.large_string()),
    "view": pa.array(TEXT, pa.string_view()),
    "binary view": pa.array([b"x" * 30, None] * N, pa.binary_view()),
    "list": pa.array([[1, 2], None, []] * N),
    "struct": pa.array([{"a": 1, "b": "x"}, None] * N),
    "map": pa.array([[("k", 1)], []] * N, pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", "b", None] * N).dictionary_encode(),
    "decimal": pa.array([1, 2] * N, pa.decimal128(20, 2)),
    "timestamp": pa.array(I, pa.timestamp("us", "UTC")),
    "fixed": pa.array([[1, 2]] * N, pa.list_(pa.int64(), 2)),
    "null": pa.nulls(N),
    "union": pa.UnionArray.from_dense(
        pa.array([0] * N, pa.int8()), pa.array(I, pa.int32()), [pa.array(I)]
    ),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([5, N], pa.int32()), pa.array([1, 2])),
    "extension": pa.array([b"0" * 16] * N, pa.uuid()),
    "empty": pa.array([], pa.string()),
}


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", ARROW)
def test_arrow_arrays_and_slices(name, shift):
    array = ARROW[name]
    for value in (array, array[3:10], array[5:5], pa.chunked_array([array, array[1:4]])):
        back = travel([value], shift)[0]
        back.validate(full=True)
        assert back.type == value.type
        assert back.equals(value)


@pytest.mark.parametrize("name", sorted(set(ARROW) - {"null", "run ends", "empty", "union"}))
def test_arrow_slices_do_not_send_their_parents(name):
    parent = pa.concat_arrays([ARROW[name]] * 20)
    assert encode(parent[7:17]).nbytes < 3000
    assert encode(pa.table({"a": parent})[7:17]).nbytes < 3000


@pytest.mark.parametrize("shift", [0, 1])
def test_arrow_tables(shift):
    schema = pa.schema(
        [pa.field("a", pa.int64(), nullable=False, metadata={"unit": "m"}), ("s", pa.string())],
        metadata={"k": "v"},
    )
    table = pa.table({"a": I, "s": TEXT}, schema=schema)
    for value in (table, table[5:9], table.to_batches()[0], schema, pa.concat_tables([table] * 2)):
        back = travel({"in": value}, shift)["in"]
        assert type(back) is type(value)
        equal = back.equals(value, check_metadata=True)
        assert equal
    assert travel(table).schema.field("a").metadata == {b"unit": b"m"}


def test_arrow_tables_are_not_copied():
    table = pa.table({"a": I, "s": TEXT})
    payload = encode(table)
    own = {b.address for column in table.columns for b in column.chunk(0).buffers() if b}
    assert addresses(payload.buffers) <= own
    assert len(payload.header) < 1000
    arrived = moved(payload)
    back = decode(arrived)
    assert back["a"].chunk(0).buffers()[1].address in addresses(arrived.buffers)


# ---- polars --------------------------------------------------------------------------------

POLARS = pl.DataFrame(
    {
        "i": I,
        "null": [None] * N,
        "b": [True, None] * (N // 2),
        "s": TEXT,
        "bin": [b"x", None] * (N // 2),
        "enum": pl.Series(["a", "b"] * (N // 2), dtype=pl.Enum(["b", "a", "c"])),
        "cat": pl.Series(["a", "b"] * (N // 2), dtype=pl.Categorical),
        "list": [["a"], []] * (N // 2),
        "array": pl.Series([[1, 2]] * N, dtype=pl.Array(pl.Int8, 2)),
        "struct": [{"a": 1, "b": ["x"]}] * N,
        "dec": pl.Series(["1.25"] * N).cast(pl.Decimal(12, 2)),
        "dt": pl.Series(I).cast(pl.Datetime("ms", "Europe/Oslo")),
        "date": pl.Series(I).cast(pl.Date),
        "time": pl.Series(I).cast(pl.Time),
        "dur": pl.Series(I).cast(pl.Duration("ns")),
        "f4": pl.Series(I).cast(pl.Float32),
        "cats": pl.Series([["a"], ["b", None]] * (N // 2), dtype=pl.List(pl.Categorical)),
    }
)


def assert_same_polars(left, right):
    assert left.schema == right.schema
    assert left.equals(right)


@pytest.mark.parametrize("arrow", [True, False], ids=["pyarrow", "no pyarrow"])
@pytest.mark.parametrize("shift", [0, 1, 8])
def test_polars_frames(shift, arrow, monkeypatch):
    if not arrow:
        monkeypatch.setattr(codec_arrow.importlib.util, "find_spec", lambda name: None)
    for value in (
        POLARS,
        POLARS[5:9],
        POLARS[:0],
        POLARS.select("s"),
        pl.concat([POLARS, POLARS], rechunk=False),
        pl.DataFrame(),
        POLARS.with_columns(pl.col("i").cast(pl.Int128)),
    ):
        payload = encode({"in": value})
        assert len(payload.header) < 12_000
        assert_same_polars(decode(moved(payload, shift))["in"], value)


@pytest.mark.parametrize("name", POLARS.columns)
def test_polars_series(name):
    value = POLARS[name]
    back = travel([value], 1)[0]
    assert back.name == value.name
    assert back.dtype == value.dtype
    assert back.equals(value, null_equal=True)


def test_polars_lazy_frames_keep_their_plan():
    value = POLARS.lazy().filter(pl.col("i") > 5).select("i", "s")
    payload = encode(value)
    assert len(payload.header) < 500
    back = decode(moved(payload))
    assert isinstance(back, pl.LazyFrame)
    assert_same_polars(back.collect(), value.collect())


def test_polars_objects_are_pickled_one_by_one():
    value = pl.DataFrame({"o": pl.Series([{1}, None], dtype=pl.Object), "i": [1, 2]})
    back = travel(value)
    assert back.schema == value.schema
    assert back["o"].to_list() == [{1}, None]
    assert back["i"].to_list() == [1, 2]


def test_polars_frames_are_not_copied():
    value = pl.DataFrame({"i": np.arange(50_000), "s": TEXT * 25})
    payload = encode(value)
    assert len(payload.header) < 2000
    arrived = moved(payload)
    back = decode(arrived)
    assert back["i"].to_numpy(allow_copy=False).ctypes.data in addresses(arrived.buffers)
    written = back.with_columns(pl.col("i") + 1)
    assert written["i"][0] == 1
    back[0, "i"] = 42
    assert back["i"][0] == 42
    assert decode(arrived)["i"][0] == 0


@pytest.mark.parametrize("column", ["s", "list", "i"])
def test_polars_slices_do_not_send_their_parents(column):
    parent = pl.concat([POLARS.select(column)] * 50)
    assert encode(parent[100:110]).nbytes < 5000
    assert encode(parent[column][100:110]).nbytes < 5000


# ---- all together --------------------------------------------------------------------------


def test_everything_works_in_another_process(tmp_path):
    table = pa.table({"a": I})
    payload = encode((EVERY_SORT, POLARS, table))
    for index, part in enumerate([payload.header, *payload.buffers]):
        (tmp_path / f"{index:04}").write_bytes(part)
    code = (
        "import pathlib, sys; from zfast.codec import Payload, decode;"
        "head, *rest = [p.read_bytes() for p in sorted(pathlib.Path(sys.argv[1]).iterdir())];"
        "df, pl, pa = decode(Payload(head, [memoryview(b) for b in rest]));"
        "df.iloc[0, 0] = -1;"
        "print(df.shape, df.attrs['n'], df.iloc[0, 0], pl.shape, pa.shape)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert out.split("\n")[0] == f"{EVERY_SORT.shape} [1] -1 {POLARS.shape} {table.shape}"
