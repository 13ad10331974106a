from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import prefect
import pytest
from prefect import flow, task
from prefect.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CacheKeyFnPolicy,
    CachePolicy,
    CompoundCachePolicy,
    Inputs,
)
from prefect.locking.memory import MemoryLockManager
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_TASKS_REFRESH_CACHE,
    temporary_settings,
)
from prefect.tasks import Task
from prefect.transactions import get_transaction, transaction

from zfast.codec import decode, encode
from zfast.codec.digest import BufferDigests
from zfast.prefect import ZfastStorage, caching
from zfast.prefect.caching import fast_policy

pytestmark = pytest.mark.usefixtures("prefect_api", "storage_path")

ROWS = 100_000


@pytest.fixture
def storage_path(tmp_path: Path, prefect_api: str) -> Iterator[Path]:
    """Where results are stored by default; nothing is there yet, not even the folder."""
    path = tmp_path / "storage"
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: path}):
        yield path


class Spy(BufferDigests):
    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def of(self, buffer: memoryview) -> bytes:
        self.nbytes += buffer.nbytes
        return super().of(buffer)


def frame(start: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(start, start + ROWS), "b": 0.5})


def fast(made: Task[Any, Any], digests: BufferDigests | None = None) -> Task[Any, Any]:
    """As a worker does it: on its own copy of the task."""
    mine = copy.copy(made)
    mine.cache_policy = fast_policy(made.cache_policy, digests)
    return mine


def key_of(made: Task[Any, Any], *args: Any) -> Any:
    """The key that a task was given for a call, as the task itself sees it."""
    keys: list[Any] = []

    @flow
    def run() -> None:
        made(keys, *args)

    run()
    return keys[0]


def note_key(keys: Any, *args: Any) -> None:
    active = get_transaction()
    assert active is not None
    keys.append(active.key)


# --- where no key is made ------------------------------------------------------------------------


def test_a_plain_task_makes_no_key(storage_path: Path) -> None:
    spy = Spy()
    made = fast(task(note_key), spy)
    assert key_of(made, frame()) is None
    assert spy.nbytes == 0
    # Others stored results long ago.
    storage_path.mkdir()
    (storage_path / "other").write_text("x")
    _make_old(storage_path)
    assert key_of(made, frame()) is None
    assert spy.nbytes == 0
    # Somebody has stored a result since: it may be ours.
    (storage_path / "new").write_text("x")
    assert key_of(made, frame()) is not None
    assert spy.nbytes >= 16 * ROWS


def _make_old(path: Path) -> None:
    os.utime(path, (1_000_000_000, 1_000_000_000))


def test_a_result_that_another_task_run_stored_is_found(storage_path: Path) -> None:
    """A plain task reads what the same task, told to persist, has stored in the same flow run."""
    storage_path.mkdir()
    _make_old(storage_path)

    @task
    def total(value: pd.DataFrame) -> int:
        return int(value["a"].sum())

    plain = fast(total)
    storing = fast(total.with_options(persist_result=True))

    @flow
    def run() -> list[str | None]:
        calls = [(plain, 0), (storing, 0), (plain, 0), (plain, 1)]
        return [made(frame(start), return_state=True).name for made, start in calls]

    assert run() == ["Completed", "Completed", "Cached", "Completed"]


@pytest.mark.parametrize(
    "options",
    [
        {"persist_result": True},
        {"cache_policy": DEFAULT},
        {"cache_policy": INPUTS + RUN_ID},
        {"result_storage": "set below"},
        {"refresh_cache": True, "persist_result": True},
    ],
)
def test_where_it_may_be_used_a_key_is_made(options: dict[str, Any], tmp_path: Path) -> None:
    if "result_storage" in options:
        options = {"result_storage": ZfastStorage(basepath=str(tmp_path))}
    made = fast(task(note_key, **options))
    assert key_of(made, frame()) is not None


def test_it_is_made_for_hooks_that_are_given_it() -> None:
    for register in ("on_commit", "on_rollback"):
        made = task(note_key)
        getattr(made, register)(lambda transaction: None)
        assert key_of(fast(made), frame()) is not None


def test_it_is_made_where_it_is_a_lock() -> None:
    locked = DEFAULT.configure(lock_manager=MemoryLockManager(), isolation_level="SERIALIZABLE")
    made = task(note_key)
    made.cache_policy = locked
    made = fast(made)
    assert key_of(made, frame()) is not None


def test_it_is_made_inside_a_transaction() -> None:
    made = fast(task(note_key))
    keys: list[Any] = []

    @flow
    def run() -> None:
        with transaction():
            made(keys, frame())

    run()
    assert keys[0] is not None


def test_where_it_would_not_be_read_no_key_is_made(storage_path: Path) -> None:
    storage_path.mkdir()
    (storage_path / "new").write_text("x")
    made = fast(task(note_key, refresh_cache=True))
    assert key_of(made, frame()) is None
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        assert key_of(fast(task(note_key)), frame()) is None
    assert key_of(fast(task(note_key)), frame()) is not None


def test_key_storage_is_looked_at(storage_path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = task(note_key)
    made.cache_policy = DEFAULT.configure(key_storage=keys)
    made = fast(made)
    assert key_of(made, frame()) is None
    keys.mkdir()
    (keys / "new").write_text("x")
    assert key_of(made, frame()) is not None


def test_a_task_run_of_its_own_makes_no_key(storage_path: Path) -> None:
    storage_path.mkdir()
    (storage_path / "new").write_text("x")
    keys: list[Any] = []
    fast(task(note_key))(keys, frame())
    assert keys == [None]


# --- keys ----------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    "value",
    [1, "text", None, [1, {"b": 2, "a": (3,)}], Point(3), {1, 2}, np.arange(10), b"x", Path("/a")],
    ids=str,
)
@pytest.mark.parametrize("policy", [DEFAULT, INPUTS, INPUTS - "y", TASK_SOURCE + INPUTS])
def test_small_inputs_have_prefects_own_key(value: Any, policy: CachePolicy) -> None:
    inputs = {"x": value, "y": 2}
    for given in (inputs, {}, {"y": 3}):
        arguments = {"task_ctx": None, "inputs": given, "flow_parameters": {}}
        assert fast_policy(policy).compute_key(**arguments) == policy.compute_key(**arguments)


def key(policy: CachePolicy, **inputs: Any) -> str | None:
    return fast_policy(policy).compute_key(task_ctx=None, inputs=inputs, flow_parameters={"n": 1})


def test_large_inputs_have_the_same_key_on_every_route() -> None:
    expected = key(INPUTS, x=frame(), y=[1])
    assert expected is not None
    for value in (frame(), decode(encode(frame())), decode(encode(frame()), copy=True)):
        assert key(INPUTS, x=value, y=[1]) == expected
        assert key(INPUTS, y=[1], x=value) == expected
    assert key(INPUTS, x=frame(1), y=[1]) != expected
    assert key(INPUTS, x=frame(), y=[2]) != expected
    assert key(INPUTS, y=frame(), x=[1]) != expected
    assert key(INPUTS - "y", x=frame(), y=[2]) == key(INPUTS - "y", x=frame(), y=[3])
    assert key(INPUTS - "x", x=frame(1), y=1) == key(INPUTS, y=1)


def test_policies_keep_their_parts_and_options() -> None:
    locks = MemoryLockManager()
    policy = (FLOW_PARAMETERS + INPUTS + CacheKeyFnPolicy(cache_key_fn=lambda *_: "k")).configure(
        key_storage="/x", lock_manager=locks, isolation_level="SERIALIZABLE"
    )
    assert isinstance(policy, CompoundCachePolicy)
    made = fast_policy(policy)
    assert isinstance(made, CompoundCachePolicy)
    assert (made.key_storage, made.isolation_level) == ("/x", "SERIALIZABLE")
    assert made.lock_manager is policy.lock_manager
    for old, new in zip(policy.policies, made.policies, strict=True):
        assert new is old or isinstance(old, Inputs)
    assert key(policy, x=1) == policy.compute_key(
        task_ctx=None, inputs={"x": 1}, flow_parameters={"n": 1}
    )
    excluded = made - "x"
    assert excluded.compute_key(None, {"x": 1}, {}) == (policy - "x").compute_key(
        None, {"x": 1}, {}
    )


@dataclass
class Custom(CachePolicy):
    def compute_key(self, *args: Any, **kwargs: Any) -> str | None:
        return "custom"


@dataclass
class CustomInputs(Inputs):
    pass


@dataclass
class CustomCompound(CompoundCachePolicy):
    pass


def test_policies_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    others = (Custom(), CustomInputs(), CustomCompound([INPUTS]), NO_CACHE, RUN_ID, None)
    for policy in (*others, CacheKeyFnPolicy(cache_key_fn=lambda *_: None)):
        assert fast_policy(policy) is policy
    custom = Custom() + RUN_ID
    assert key_of(fast(task(note_key, cache_policy=custom)), 1) is not None
    monkeypatch.setattr(prefect, "__version__", "4.0.0")
    assert fast_policy(DEFAULT) is DEFAULT


def test_a_custom_part_is_asked_even_if_nothing_is_stored() -> None:
    asked: list[Any] = []

    def ask(context: Any, parameters: dict[str, Any]) -> str:
        asked.append(parameters)
        return "k"

    made = task(note_key)
    made.cache_policy = RUN_ID + CacheKeyFnPolicy(cache_key_fn=ask)
    assert key_of(fast(made), 1) is not None
    assert len(asked) == 1


def test_what_cannot_be_hashed_is_prefects_error() -> None:
    for value in (threading.Lock(), [threading.Lock(), frame()]):
        errors = []
        for policy in (INPUTS, fast_policy(INPUTS)):
            with pytest.raises(ValueError, match="locks, file handles") as caught:
                policy.compute_key(task_ctx=None, inputs={"x": value}, flow_parameters={})
            errors.append(str(caught.value))
        assert errors[0] == errors[1]

    # In a run it is a message, and no key.
    made = fast(task(note_key, persist_result=True))
    assert key_of(made, threading.Lock()) is None


# --- caching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored_by_zfast", [False, True])
def test_results_are_cached(stored_by_zfast: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"persist_result": True}
    if stored_by_zfast:
        block = ZfastStorage(basepath=str(tmp_path / "zfast"))
        options |= {"result_storage": block, "result_serializer": "zfast"}

    @task(**options)
    def double(value: pd.DataFrame) -> pd.DataFrame:
        return value * 2

    made = fast(double)

    def run_flow() -> list[str | None]:
        @flow
        def run() -> list[str | None]:
            first = made(frame(), return_state=True)
            received = decode(encode(frame()))
            again = made(received, return_state=True)
            pd.testing.assert_frame_equal(again.result(), frame() * 2)
            other = made(frame(1), return_state=True)
            of_result = made(first.result(), return_state=True)
            of_result_again = made(again.result(), return_state=True)
            return [s.name for s in (first, again, other, of_result, of_result_again)]

        return run()

    expected = ["Completed", "Cached", "Completed", "Completed", "Cached"]
    assert run_flow() == expected
    assert run_flow() == expected, "a key is of one flow run"


def test_inputs_are_cached_across_runs() -> None:
    @task(cache_policy=INPUTS - "note")
    def total(value: pd.DataFrame, note: str) -> int:
        return int(value["a"].sum())

    def name(made: Task[Any, Any], start: int, note: str) -> str | None:
        @flow
        def run() -> Any:
            return made(frame(start), note, return_state=True).name

        result: str | None = run()
        return result

    assert name(fast(total), 0, "a") == "Completed"
    assert name(fast(total), 0, "b") == "Cached"
    assert name(fast(total), 1, "b") == "Completed"
    assert name(fast(total.with_options(refresh_cache=True)), 0, "a") == "Completed"
    # Prefect itself has another key for a large input.
    assert name(total, 0, "a") == "Completed"


def test_a_cache_of_small_inputs_is_shared_with_prefect() -> None:
    @task(cache_policy=INPUTS)
    def double(value: int) -> int:
        return value * 2

    @flow
    def names() -> list[Any]:
        return [m(21, return_state=True).name for m in (double, fast(double))]

    assert names() == ["Completed", "Cached"]


def test_a_cache_in_use_serves_many_tasks_one_digest() -> None:
    hashed: list[int] = []

    class Counting(BufferDigests):
        def of(self, buffer: memoryview) -> bytes:
            before = len(self._remembered)
            result = super().of(buffer)
            hashed.append(len(self._remembered) - before)
            return result

    value = decode(encode(frame()))
    digests = Counting(lambda buffer: np.frombuffer(buffer, "u1").ctypes.data)
    for _ in range(10):
        fast_policy(INPUTS, digests).compute_key(None, {"x": value}, {})
    assert sum(hashed) == 2
    assert value.memory_usage().sum() > caching.LARGE_NBYTES
