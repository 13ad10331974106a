from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from zfast.codec import Payload, decode, encode
from zfast.codec.digest import MAX_REMEMBERED, BufferDigests, digest_large

N = 20_000


def digest(value: Any) -> str | None:
    return digest_large(value, 1, BufferDigests())


def text(rows: int = N) -> list[str | None]:
    return [f"a rather long text {i}" if i % 3 else None for i in range(rows)]


def arrow(rows: int) -> Any:
    return pd.array(text(rows), dtype="string[pyarrow]")


def frame() -> pd.DataFrame:
    # Names that pandas uses itself, as keys of what it pickles.
    rng = np.random.default_rng(1)
    return pd.DataFrame(rng.random((N, 4)), columns=["data", "name", "b", "_mgr"])


def mixed() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "data": np.arange(N),
            "name": np.linspace(0, 1, N),
            "s": text(),
            "t": pd.date_range("2020", periods=N, freq="s", tz="Europe/Berlin"),
            "c": pd.Categorical(np.arange(N) % 7),
            "I": pd.array(np.arange(N), dtype="Int64"),
            "B": pd.array([True, None] * (N // 2), dtype="boolean"),
            "o": [("x", i) for i in range(N)],
            "p": pd.period_range("2000", periods=N, freq="h"),
            "i": pd.interval_range(0, N, periods=N),
        }
    )


def table() -> Any:
    return pa.table({"a": np.arange(N), "s": text(), "l": [[i] for i in range(N)]})


VALUES: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(N),
    "array with gaps": lambda: np.arange(N)[::2],
    "reversed": lambda: np.arange(N)[::-1],
    "F order": lambda: np.asfortranarray(np.arange(N).reshape(100, 200)),
    "gaps in two directions": lambda: np.arange(N).reshape(100, 200)[::3, ::-1].T,
    "axes of one element": lambda: np.arange(N)[::2][None, :, None],
    "broadcast": lambda: np.broadcast_to(np.arange(N), (3, N)),
    "masked": lambda: np.ma.masked_array(np.arange(N), mask=np.arange(N) % 2 == 0),
    "datetime64": lambda: np.arange(N).astype("M8[s]"),
    "structured": lambda: np.zeros(N, [("a", "f8"), ("b", "i4")]),
    "memoryview": lambda: memoryview(bytearray(N)),
    "bytes": lambda: bytes(N),
    "frame": frame,
    "mixed frame": mixed,
    "sliced frame": lambda: mixed().iloc[7:-300],
    "every other row": lambda: frame().iloc[5::3],
    "multi index": lambda: frame().set_index(
        pd.MultiIndex.from_product([range(100), range(200)], names=["data", None])
    ),
    "same column twice": lambda: pd.concat([frame(), frame()[["b"]]], axis=1),
    "series": lambda: pd.Series(np.arange(N), name="data"),
    "index": lambda: pd.Index(np.arange(N) * 2, name="data"),
    "nested": lambda: {"a": [frame(), np.arange(N)], "data": "data", "n": None},
    "table": table,
    "sliced table": lambda: table().slice(5, N - 4000),
    "polars": lambda: pl.DataFrame({"a": np.arange(N), "s": text()}),
    "sliced polars": lambda: pl.DataFrame({"a": np.arange(N), "s": text()}).slice(9, N - 4000),
}


def travelled(value: Any) -> Any:
    payload = encode(value)
    return decode(Payload(payload.header, [memoryview(bytes(b)) for b in payload.buffers]))


@pytest.mark.parametrize("name", VALUES)
def test_equal_values_have_equal_digests_on_every_route(name: str) -> None:
    make = VALUES[name]
    expected = digest(make())
    assert expected is not None
    received = travelled(make())
    for value in (
        make(),
        received,
        travelled(received),
        decode(encode(make()), copy=True),
        travelled(decode(encode(received), copy=True)),
    ):
        assert digest(value) == expected
    used = make()
    for attribute in ("describe", "nunique"):  # fills caches
        if isinstance(used, pd.DataFrame) and "o" not in used:
            getattr(used, attribute)()
    assert digest(used) == expected


def test_different_values_have_different_digests() -> None:
    values = [make() for name, make in VALUES.items() if name not in ("bytes", "memoryview")]
    array = np.arange(N)
    values += [
        array.astype("i4"),
        array.reshape(2, -1),
        array.reshape(-1, 2),
        [array],
        (array,),
        [array, array],
        {"a": array},
        np.where(array == 7, 8, array),
        frame().rename(columns={"b": "c"}),
        frame().rename_axis("x"),
        frame().set_axis(range(1, N + 1)),
        frame().astype({"b": "f4"}),
        pd.Series(array),
        pd.Series(array, name="x"),
        bytes(N),
        bytearray(N),
    ]
    changed = frame()
    changed.iloc[-1, -1] += 1e-9
    values.append(changed)
    digests = [digest(value) for value in values]
    assert None not in digests
    assert len(set(digests)) == len(digests)


def test_the_blocks_and_the_order_of_columns_do_not_matter() -> None:
    made = frame()
    piecemeal = pd.DataFrame(index=made.index)
    for name in reversed(made.columns):
        piecemeal[name] = made[name].to_numpy()
    assert digest(piecemeal) == digest(made)


def test_which_objects_are_the_same_does_not_matter() -> None:
    array = np.arange(N)
    assert digest([array, array]) == digest([array, array.copy()])


def test_what_is_small_or_cannot_be_pickled_has_none() -> None:
    cyclic: list[Any] = [np.arange(N)]
    cyclic.append(cyclic)
    for value in (1, "x" * N, None, [1, "x"], cyclic, [np.arange(N), threading.Lock()]):
        assert digest(value) is None
    assert digest_large(np.zeros(N, "u1"), N, BufferDigests()) is not None
    assert digest_large(np.zeros(N, "u1"), N + 1, BufferDigests()) is None
    assert digest_large(pd.DataFrame({"s": arrow(100)}), 10**5, BufferDigests()) is None
    assert digest_large(pd.DataFrame({"s": arrow(N)}), 10**5, BufferDigests()) is not None


def test_named_memory_is_hashed_once() -> None:
    hashed: list[int] = []
    names: list[Any] = ["block 1", "block 1", None, None]

    def identify(buffer: memoryview) -> Any:
        hashed.append(buffer.nbytes)
        return names[len(hashed) - 1]

    digests = BufferDigests(identify)
    one, other = memoryview(bytes(N)), memoryview(b"x" * N)
    assert digests.of(one) == digests.of(other), "the name says that they are the same"
    assert digests.of(one) != digests.of(other)
    for number in range(2 * MAX_REMEMBERED):
        names.append(number)
        digests.of(one[:8])
    assert len(digests._remembered) == MAX_REMEMBERED


def test_an_index_that_columns_share_is_hashed_once() -> None:
    seen: list[int] = []

    def identify(buffer: memoryview) -> None:
        seen.append(buffer.nbytes)

    made = frame().set_index("b")
    digest_large([made[name] for name in made.columns], 1, BufferDigests(identify))
    assert len(seen) == 4


def test_pickling_stays_as_it_was() -> None:
    made = mixed()
    pd.testing.assert_frame_equal(decode(encode(made)), made)
    assert pickle.loads(pickle.dumps(made)).equals(made)
