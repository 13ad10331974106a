"""Async tasks in an async flow, a subflow that submits too, and tags that change between submits.

Run: python examples/flows/async_tasks.py
"""

import asyncio

from prefect import flow, tags, task
from prefect.runtime import task_run

from zfast import ZfastTaskRunner


@task
async def fetch(number: int) -> tuple[int, list[str]]:
    await asyncio.sleep(0.01)
    return number * number, sorted(task_run.tags)


@flow(task_runner=ZfastTaskRunner(max_workers=2))
def squares(numbers: list[int]) -> int:
    return sum(future.result()[0] for future in fetch.map(numbers))


@flow(task_runner=ZfastTaskRunner(max_workers=2))
async def gather() -> tuple[int, list[str]]:
    with tags("urgent"):
        future = fetch.submit(3)
    _, names = future.result()
    return squares([1, 2, 3]), names


if __name__ == "__main__":
    print(asyncio.run(gather()))
