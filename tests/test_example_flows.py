"""The example flows run, and say what the runners that they were written for make them say."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

FLOWS = Path(__file__).parents[1] / "examples" / "flows"
CALLS = {
    "map_and_reduce": ("count_words", (["a quick brown fox", "brown dogs jump"],)),
    "retries": ("carry_on", ()),
    "processes": ("count_primes", (2_000, 500)),
    "dataframes": ("sensors", (2, 1_000)),
    "async_tasks": ("gather", ()),
}


def load(name, monkeypatch):
    # As a user's own module would be: workers find it on the driver's search path.
    monkeypatch.syspath_prepend(str(FLOWS))
    return importlib.import_module(name)


def call(flow, arguments):
    result = flow(*arguments)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


#: Each shape of a flow runs anyhow; those that take longest, only in a long run.
LONG = {"retries", "async_tasks", "dataframes"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in CALLS]
)
def test_an_example_gives_what_a_thread_pool_gives(name, prefect_api, monkeypatch):
    module = load(name, monkeypatch)
    function, arguments = CALLS[name]
    flow = getattr(module, function)
    threads = flow.with_options(task_runner=ThreadPoolTaskRunner(max_workers=2))
    ours, theirs = call(flow, arguments), call(threads, arguments)
    assert str(ours) == str(theirs)
