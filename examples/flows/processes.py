"""Work for every processor: written for ProcessPoolTaskRunner, one line changed.

Run: python examples/flows/processes.py
"""

from prefect import flow, task
from prefect.futures import as_completed

from zfast import ZfastTaskRunner


@task
def n_primes(start: int, stop: int) -> int:
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(2, start), stop))


@flow(task_runner=ZfastTaskRunner(max_workers=2))
def count_primes(limit: int = 20_000, chunk: int = 5_000) -> int:
    futures = [n_primes.submit(start, start + chunk) for start in range(0, limit, chunk)]
    return sum(future.result() for future in as_completed(futures))


if __name__ == "__main__":
    print(count_primes())
