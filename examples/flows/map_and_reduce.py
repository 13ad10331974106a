"""Fan out over pages, reduce them: written for ThreadPoolTaskRunner, one line changed.

Run: python examples/flows/map_and_reduce.py
"""

from collections import Counter

from prefect import flow, task, unmapped

from zfast import ZfastTaskRunner


@task
def words(page: str, shortest: int) -> Counter[str]:
    return Counter(word for word in page.lower().split() if len(word) >= shortest)


@task
def add_up(counts: list[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter())


@flow(task_runner=ZfastTaskRunner(max_workers=2))
def count_words(pages: list[str]) -> Counter[str]:
    counts = words.map(pages, shortest=unmapped(4))
    return add_up.submit(counts).result()


if __name__ == "__main__":
    print(count_words(["the quick brown fox", "jumps over the lazy brown dog"]))
