"""The codec: Python values, NumPy arrays, references, errors. Frames are in test_codec_frames."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import gc
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import types
import uuid
import warnings
import weakref

import cloudpickle
import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zfast.codec import IN_BAND_MAX_NBYTES, Payload, decode, encode
from zfast.errors import CodecError, WorkerDiedError

#: NumPy 2.5 warns of a class that is still there.
OLD_CLASS = "ignore:The chararray class is deprecated:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(OLD_CLASS)
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


def assert_same_array(left, right):
    assert type(left) is type(right)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    np.testing.assert_array_equal(left, right)


# ---- NumPy ---------------------------------------------------------------------------------

GRID = np.arange(40_000.0).reshape(100, 200, 2)


def _chararray(items: list[str]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.char.array(items)


STRUCT = np.dtype([("id", "<i4"), ("where", "<f8", (2,)), ("name", "S5")], align=True)
ARRAYS = {
    "c": GRID,
    "f": np.asfortranarray(GRID),
    "transposed": GRID.transpose(2, 0, 1),
    "strided": GRID[::3, 1::2],
    "reversed": GRID[::-1, :, ::-1],
    "broadcast": np.broadcast_to(np.arange(300.0), (20, 300)),
    "small": np.arange(5),
    "0-d": np.array(3.5),
    "empty": np.empty((0, 3), "f4"),
    "empty str": np.array([], "U3"),
    "no width": np.array(["", ""]),
    "bool": GRID > 5,
    "half": GRID.astype("f2"),
    "big-endian": GRID.astype(">i4"),
    "complex": GRID * 1j,
    "longdouble": GRID.astype("g"),
    "datetime": GRID.astype("i8").view("M8[ns]"),
    "timedelta": GRID.astype("i8").astype("m8[25s]"),
    "NaT": np.array(["NaT", "2020-01-01"], "M8[D]"),
    "str": np.array(["æøå", "b", ""] * 1000),
    "bytes": np.array([b"a\0b", b"c"] * 2000),
    "void": np.zeros(1000, "V7"),
    "struct": np.zeros(1000, STRUCT),
    "struct field": np.ones(1000, STRUCT)["id"],
    "object": np.array([1, None, "x", [2]], object),
    # NumPy 1.26 has none
    **(
        {"StringDType": np.array(["a", "b" * 100], dtype=np.dtypes.StringDType())}
        if hasattr(np.dtypes, "StringDType")
        else {}
    ),
    "recarray": np.rec.fromarrays([np.arange(900), np.arange(900.0)], names="a,b"),
    "chararray": _chararray(["a", "bc"] * 800),
}


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 8])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_arrive_as_they_were(name, shift, copy):
    value = ARRAYS[name]
    back = travel({"in": [value]}, shift, copy)["in"][0]
    assert_same_array(back, value)
    if value.dtype.hasobject or value.dtype.itemsize == 0:
        return
    assert back.flags.writeable is copy
    if shift != 8:
        assert back.flags.aligned
    if copy:
        back[...] = back[(0,) * back.ndim] if back.size else 0


def test_matrix_and_memmap(tmp_path):
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(GRID[:, :, 0])
    assert_same_array(travel(matrix), matrix)

    mapped = np.memmap(tmp_path / "m", dtype="i4", mode="w+", shape=(50, 40))
    mapped[:] = 7
    payload = encode(mapped)
    assert np.shares_memory(np.frombuffer(payload.buffers[0], np.uint8), mapped)
    assert_same_array(decode(moved(payload)), np.asarray(mapped))


@pytest.mark.parametrize("mask", [GRID > 7, np.ma.nomask], ids=["mask", "nomask"])
def test_masked_arrays(mask):
    value = np.ma.MaskedArray(GRID, mask=mask, fill_value=-1, hard_mask=True)
    payload = encode(value)
    assert sum(buffer.nbytes for buffer in payload.buffers) >= GRID.nbytes
    back = decode(moved(payload))
    np.testing.assert_array_equal(back.data, value.data)
    np.testing.assert_array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(value))
    assert (back.mask is np.ma.nomask) == (mask is np.ma.nomask)
    assert (back.fill_value, back.hardmask) == (-1, True)
    private = travel(value, copy=True)
    private[0] = np.ma.masked
    assert private.mask[0].all()


def test_an_array_subclass_keeps_its_own_way_of_pickling():
    value = WithUnit(np.arange(1000.0), "m")
    back = travel(value)
    assert back.unit == "m"
    np.testing.assert_array_equal(back, value)


class WithUnit(np.ndarray):
    def __new__(cls, data, unit):
        self = np.asarray(data).view(cls)
        self.unit = unit
        return self

    def __array_finalize__(self, other):
        self.unit = getattr(other, "unit", None)

    def __reduce__(self):
        return WithUnit, (np.asarray(self), self.unit)


@pytest.mark.parametrize(
    "value",
    [np.float64(1.5), np.int8(-3), np.datetime64("2020-01-01", "us"), np.str_("x"), np.bool_(1)],
    ids=repr,
)
def test_numpy_scalars(value):
    back = travel(value)
    assert type(back) is type(value)
    assert back == value


def test_dtype_metadata_is_kept():
    value = np.zeros(1000, np.dtype("f8", metadata={"unit": "m"}))
    assert travel(value).dtype.metadata == {"unit": "m"}


@pytest.mark.parametrize("name", ["c", "f", "transposed", "datetime", "struct", "recarray", "str"])
def test_arrays_are_not_copied(name):
    value = ARRAYS[name]
    payload = encode([value])
    (buffer,) = payload.buffers
    assert buffer.readonly
    assert (buffer.format, buffer.ndim, buffer.nbytes) == ("B", 1, value.nbytes)
    assert np.frombuffer(buffer, np.uint8).ctypes.data == value.ctypes.data
    assert len(payload.header) < 1000
    assert payload.nbytes == len(payload.header) + value.nbytes

    arrived = moved(payload)
    (back,) = decode(arrived)
    assert np.frombuffer(arrived.buffers[0], np.uint8).ctypes.data == back.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        back[...] = 0
    (private,) = decode(arrived, copy=True)
    assert private.ctypes.data != back.ctypes.data


def test_an_array_with_gaps_is_copied_once_and_sends_only_itself():
    payload = encode(GRID[:, ::4])
    assert [buffer.nbytes for buffer in payload.buffers] == [GRID[:, ::4].nbytes]
    assert len(payload.header) < 500


def test_small_arrays_need_no_buffer_each():
    value = [np.full(4, i) for i in range(3000)]
    payload = encode(value)
    assert payload.buffers == []
    back = decode(payload)
    assert not back[7].flags.writeable
    np.testing.assert_array_equal(back[7], value[7])
    assert decode(payload, copy=True)[7].flags.writeable


def test_one_array_sent_twice_is_one_array():
    value = np.arange(5000)
    payload = encode({"a": value, "b": value})
    assert len(payload.buffers) == 1
    back = decode(payload)
    assert back["a"] is back["b"]


def test_lifetimes_follow_the_data():
    value = np.arange(5000)
    ref = weakref.ref(value)
    gc.disable()
    try:
        payload = encode([value])
        del value
        back = decode(payload)
        del payload
        np.testing.assert_array_equal(back[0], np.arange(5000))
        assert ref() is not None or back[0].base is not None
        base = weakref.ref(back[0].base)
        del back
        assert base() is None, "the decoded memory outlived the value without a collection"
        assert ref() is None, "encoding left a reference behind"
    finally:
        gc.enable()


@QUICK
@given(
    data=st.data(),
    dtype=st.one_of(
        hnp.scalar_dtypes(),
        hnp.byte_string_dtypes(),
        hnp.unicode_string_dtypes(),
        hnp.array_dtypes(max_size=3),
    ),
    order=st.sampled_from("CFKA"),
    shift=st.sampled_from([0, 1, 8]),
    repeats=st.sampled_from([1, 300]),
)
def test_any_array_survives(data, dtype, order, shift, repeats):
    if dtype.subdtype is not None:
        dtype = dtype.base
    # From bytes: all bit patterns, NaNs among them.
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    nbytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
    if dtype.kind == "U" or any(d[0].kind == "U" for d in (dtype.fields or {}).values()):
        raw = bytes(nbytes)
    else:
        raw = data.draw(st.binary(min_size=nbytes, max_size=nbytes))
    value = np.array(np.ndarray(shape, dtype, raw), order=order)
    value = np.repeat(value[np.newaxis], repeats, axis=0)
    value = value[:: data.draw(st.sampled_from([1, 2, -1]))].transpose(
        data.draw(st.permutations(range(value.ndim)))
    )
    back = travel(value, shift)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert back.tobytes() == value.tobytes()


# ---- Python values -------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclasses.dataclass
class Point:
    x: float
    tags: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int


class Model(pydantic.BaseModel):
    name: str
    when: dt.datetime
    inner: list[Point] = []


Pair = collections.namedtuple("Pair", "a b")
VALUES = [
    None,
    {"a": [1, 2.5, "æ", b"x", {3, 4}, frozenset({5}), (6,), 1 << 200, 2j, ...]},
    Colour.BLUE,
    Point(1.5, ["a"]),
    Frozen(3),
    Model(name="m", when=dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc), inner=[Point(1, [])]),
    Pair(1, "b"),
    collections.OrderedDict(a=1),
    collections.defaultdict(list, a=[1]),
    collections.deque([1, 2], maxlen=3),
    uuid.UUID(int=7),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    dt.timedelta(days=3, microseconds=1),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    pathlib.PurePosixPath("/a/b"),
    array.array("d", [1.0, 2.0]),
    range(3),
    slice(1, None),
    types.SimpleNamespace(a=1),
    types.MappingProxyType({"a": 1}),
    Point,
    os.path.join,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_python_values(value):
    back = travel(value)
    assert type(back) is type(value)
    assert back == value


@QUICK
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.datetimes()
        | st.uuids(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=3), inner, max_size=4)
            | st.tuples(inner, inner)
        ),
        max_leaves=20,
    )
)
def test_any_nested_value_survives(value):
    back = travel(value, 1)
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("nbytes", [0, 10, 100_000])
def test_bytes_by_themselves_go_out_of_band(kind, nbytes):
    value = kind(os.urandom(nbytes))
    payload = encode(value)
    assert [b.nbytes for b in payload.buffers] == ([nbytes] if nbytes > 5000 else [])
    for copy in (False, True):
        back = decode(moved(payload, 1), copy=copy)
        assert type(back) is kind
        assert back == value


def test_memoryviews_go_out_of_band_wherever_they_are():
    data = np.arange(6000.0).reshape(2, 3000)
    payload = encode({"a": [memoryview(data)], "strided": memoryview(b"abcdef")[::2]})
    assert [buffer.nbytes for buffer in payload.buffers] == [data.nbytes]
    back = decode(moved(payload))
    assert back["a"][0] == memoryview(data)
    assert back["a"][0].shape == (2, 3000)
    assert back["strided"] == b"ace"


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize("kind", ["d", "B", "?", "q"])
def test_memoryviews_without_elements_keep_their_shape(shape, kind):
    view = memoryview(np.empty(shape, kind))
    for copy in (False, True):
        back = decode(moved(encode([view]), 1), copy=copy)[0]
        assert (type(back), back.format, back.shape) == (memoryview, kind, shape)
    assert decode(encode(memoryview(b""))) == b""


def test_recursive_values():
    value = [np.arange(1000)]
    value.append({"self": value})
    back = travel(value)
    assert back[1]["self"] is back


# ---- by value ------------------------------------------------------------------------------


def test_lambdas_closures_and_local_classes():
    offset = np.arange(3000)

    @dataclasses.dataclass
    class Local:
        x: int

        def doubled(self):
            return 2 * self.x

    value = {
        "lambda": lambda x: x + offset,
        "partial": functools.partial(lambda a, b: (a, b), 1),
        "local": Local(21),
    }
    payload = encode(value)
    assert [buffer.nbytes for buffer in payload.buffers] == [offset.nbytes]
    back = decode(moved(payload))
    np.testing.assert_array_equal(back["lambda"](1), offset + 1)
    assert back["partial"](2) == (1, 2)
    assert back["local"].doubled() == 42


def test_things_of_main_work_in_another_process(tmp_path):
    script = tmp_path / "sender.py"
    script.write_text(
        textwrap.dedent(
            """
            import dataclasses, enum, sys
            import numpy as np, pydantic
            from zfast.codec import encode

            BASE = np.arange(1000)

            @dataclasses.dataclass
            class Job:
                n: int

            class Mode(enum.Enum):
                FAST = "fast"

            class Settings(pydantic.BaseModel):
                mode: Mode = Mode.FAST

            class Refused(Exception):
                def __init__(self, code, *, why):
                    super().__init__(f"{code}: {why}")
                    self.code = code

            def helper(job):
                return int(BASE.sum()) + job.n

            def work(job):
                return helper(job)

            payload = encode([work, Job(7), Settings(), Refused(3, why="full")])
            sys.stdout.buffer.write(len(payload.header).to_bytes(8, "little"))
            sys.stdout.buffer.write(payload.header)
            for buffer in payload.buffers:
                sys.stdout.buffer.write(buffer)
            """
        )
    )
    sent = subprocess.run(
        [sys.executable, str(script)], stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout
    size = 8 + int.from_bytes(sent[:8], "little")
    # BASE, the only large thing, is the only buffer.
    work, job, model, error = decode(Payload(sent[8:size], [memoryview(sent[size:])]))
    assert work(job) == 499500 + 7
    assert model.mode.value == "fast"
    assert (str(error), error.code) == ("3: full", 3)


def test_modules_registered_by_value_go_by_value():
    module = types.ModuleType("only_here")
    exec("def f():\n    return 42", module.__dict__)
    sys.modules["only_here"] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        payload = encode(module.f)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["only_here"]
    assert decode(payload)() == 42


# ---- references ----------------------------------------------------------------------------


class Future:
    def __init__(self, key):
        self.key = key
        self.lock = threading.Lock()


@pytest.mark.parametrize("copy", [False, True])
def test_references_replace_what_must_not_travel(copy):
    def persistent_id(obj):
        return ("future", obj.key) if isinstance(obj, Future) else None

    def persistent_load(pid):
        kind, key = pid
        assert kind == "future"
        return f"result of {key}"

    future = Future("k")
    big = np.arange(3000)
    payload = encode(
        ((future, [future], big), {"f": lambda: future.key if False else future}),
        persistent_id=persistent_id,
    )
    assert [buffer.nbytes for buffer in payload.buffers] == [big.nbytes]
    args, kwargs = decode(moved(payload), copy=copy, persistent_load=persistent_load)
    assert args[:2] == ("result of k", ["result of k"])
    assert args[2].flags.writeable is copy
    assert kwargs["f"]() == "result of k"
    with pytest.raises(CodecError, match="persistent"):
        decode(payload)
    with pytest.raises(CodecError, match="persistent_load"):
        decode(payload, copy=True)


def test_errors_of_the_hooks():
    def lost(_):
        raise WorkerDiedError("the worker that had it died")

    def broken(_):
        raise LookupError("no such key")

    payload = encode(1.5, persistent_id=lambda obj: "x")
    with pytest.raises(WorkerDiedError, match="had it died"):
        decode(payload, persistent_load=lost)
    with pytest.raises(CodecError, match="no such key") as caught:
        decode(payload, persistent_load=broken)
    assert isinstance(caught.value.__cause__, LookupError)
    with pytest.raises(WorkerDiedError):
        encode(1.5, persistent_id=lost)


# ---- exceptions ----------------------------------------------------------------------------


class HttpError(Exception):
    def __init__(self, status, *, url):
        super().__init__(f"{url} said {status}")
        self.status = status
        self.url = url


class OwnWay(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self):
        return OwnWay, (self.code,)


def test_exceptions_keep_their_attributes_cause_notes_and_traceback():
    def fetch():
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise HttpError(503, url="http://x") from error

    with pytest.raises(HttpError) as caught:
        fetch()
    caught.value.__notes__ = ["try later"]
    back = travel(travel({"e": caught.value}))["e"]
    assert type(back) is HttpError
    assert str(back) == "http://x said 503"
    assert (back.status, back.url, back.__notes__) == (503, "http://x", ["try later"])
    assert isinstance(back.__cause__, KeyError)
    assert back.__suppress_context__
    assert "in fetch" in back.remote_traceback
    assert "in fetch" in back.__cause__.remote_traceback
    assert "http://x said 503" in "".join(traceback.format_exception(back))


def _unicode_error():
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (ValueError("a", 1), []),
        (FileNotFoundError(2, "no such file", "/x"), ["errno", "strerror", "filename"]),
        (_unicode_error(), ["encoding", "object", "start", "end", "reason"]),
        (ModuleNotFoundError("no", name="n", path="p"), ["name", "path"]),
        (StopIteration(3), ["value"]),
        (SystemExit(4), ["code"]),
        (OwnWay(5), ["code"]),
        (WorkerDiedError("m", detail="d", hint="h"), ["message", "detail", "hint"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exception_slots(error, names):
    error.__cause__ = OSError("why")
    back = travel(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert [getattr(back, name) for name in names] == [getattr(error, name) for name in names]
    assert isinstance(back.__cause__, OSError)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_exception_groups():
    group = ExceptionGroup("many", [ValueError(1), HttpError(404, url="u")])  # noqa: F821
    back = travel(group)
    assert (back.message, str(back.exceptions[1])) == ("many", "u said 404")


# ---- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (threading.Lock(), ["_thread.lock"]),
        ({"a": [1, {"b": threading.Lock()}]}, ["type dict", "value['a'][1]['b']", "_thread.lock"]),
        (types.SimpleNamespace(db=(0, threading.Lock())), ["value.db[1]"]),
        ((i for i in ()), ["generator"]),
    ],
    ids=["lock", "nested", "attribute", "generator"],
)
def test_what_cannot_be_encoded_is_named(value, words):
    with pytest.raises(CodecError) as caught:
        encode(value)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    assert caught.value.__cause__ is not None


def test_a_lock_in_a_closure_is_named():
    guard = threading.Lock()
    with pytest.raises(CodecError, match="closing over guard"):
        encode([lambda: guard])


def test_too_deep_a_value():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError, match="nested too deeply"):
        encode(deep)


def test_a_class_whose_pickling_fails():
    class Odd:
        def __reduce__(self):
            raise RuntimeError("not today")

    with pytest.raises(CodecError, match="Odd: not today"):
        encode(Odd())


def test_every_truncation_is_refused():
    payload = encode({"a": np.arange(1000), "b": Point(1, ["x"]), "c": "text"})
    for size in range(len(payload.header)):
        with pytest.raises(CodecError, match="cannot decode"):
            decode(Payload(payload.header[:size], payload.buffers))


@QUICK
@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(CodecError):
        decode(Payload(garbage, []))


def test_wrong_buffers_are_refused():
    payload = encode([np.arange(1000), np.arange(2000.0)])
    first, second = payload.buffers
    for buffers in ([], [first], [first, second, first], [second, first], [first[:-8], second]):
        with pytest.raises(CodecError, match="cannot decode"):
            decode(Payload(payload.header, buffers))
    with pytest.raises(CodecError, match="cannot decode"):
        decode(Payload(payload.header, [None, second]))


def test_a_missing_module_and_a_missing_name():
    header = pickle.dumps(os.path.join, 5)
    for old, new, words in [
        (b"posixpath", b"posixpatH", "No module named 'posixpatH'"),
        (b"join", b"joim", "joim"),
    ]:
        with pytest.raises(CodecError, match=words) as caught:
            decode(Payload(header.replace(old, new), []))
        assert caught.value.hint
        assert caught.value.__cause__ is not None


def test_threads_may_encode_and_decode_at_once():
    value = {"a": np.arange(3000), "f": lambda x: x + 1, "p": [Point(i, []) for i in range(50)]}
    failures = []

    def work():
        try:
            for _ in range(50):
                assert travel(value)["p"] == value["p"]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_import_is_light():
    code = (
        "import sys, zfast.codec as c; c.decode(c.encode({'a': [1]}));"
        "heavy = {'pandas', 'polars', 'pyarrow', 'prefect', 'zmq', 'pydantic'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_bound_for_small_buffers():
    at = np.zeros(IN_BAND_MAX_NBYTES, np.uint8)
    assert len(encode(at).buffers) == 1
    assert encode(at[1:]).buffers == []
