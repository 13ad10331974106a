"""A task that fails twice and is retried, and one whose failure the next may see.

Run: python examples/flows/retries.py
"""

from prefect import allow_failure, flow, task
from prefect.runtime import task_run

from zfast import ZfastTaskRunner


@task(retries=2, retry_delay_seconds=0.1)
def flaky() -> int:
    if task_run.run_count < 3:
        raise ConnectionError("not yet")
    return task_run.run_count


@task
def broken() -> None:
    raise ValueError("never works")


@task
def report(attempts: int, problem: object) -> str:
    return f"it worked at attempt {attempts}; the other said: {problem}"


@flow(task_runner=ZfastTaskRunner(max_workers=2))
def carry_on() -> str:
    return report.submit(flaky.submit(), allow_failure(broken.submit())).result()


if __name__ == "__main__":
    print(carry_on())
