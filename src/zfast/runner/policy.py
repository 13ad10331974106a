"""What a hub's user decides: how many workers, how long they live, how much they may go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zfast.errors import ConfigError

#: A lease without an end would never be given up.
MAX_LEASE_S = 1e6


@dataclass(frozen=True, slots=True)
class Policy:
    """How a hub treats its workers and jobs.

    Attributes:
        max_workers: At most so many run jobs at one time, those on other hosts not counted.
        min_workers: So many are kept even when there is nothing to do.
        spares: Workers beyond those, their imports done, that take over when one dies. They are
            started while there is work, once the others have settled.
        idle_timeout_s: A worker that had nothing to do for so long, and is not needed, is stopped.
        max_tasks_per_worker: After so many jobs a worker is replaced by a fresh one.
        max_worker_nbytes: A worker whose private memory has grown past it is replaced after the
            job that it runs.
        max_worker_deaths: A job whose workers died so often is given up.
        lease_s: A worker that shows no sign of life for so long is killed, and its job replayed.
            Its own computations, however long, are signs of life.
        max_inflight_nbytes: No job is handed out in advance while so many bytes of handed-out jobs
            travel, those in shared memory not counted.
        initializer: A pickled ``(function, arguments)`` that each worker calls before its first
            job.

    Raises:
        ConfigError: A value is out of its range; the message names it.
    """

    max_workers: int
    min_workers: int = 0
    spares: int = 1
    idle_timeout_s: float = 60.0
    max_tasks_per_worker: int | None = None
    max_worker_nbytes: int | None = None
    max_worker_deaths: int = 3
    lease_s: float = 60.0
    max_inflight_nbytes: int = 256 << 20
    initializer: bytes | None = None

    def __post_init__(self) -> None:
        for name, least in _WHOLE_NUMBERS.items():
            check_whole_number(name, getattr(self, name), least, optional=name in _OPTIONAL)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
        check_seconds("lease_s", self.lease_s, most=MAX_LEASE_S)
        if self.min_workers > self.max_workers:
            raise ConfigError(
                f"min_workers is {self.min_workers}, more than max_workers, {self.max_workers}",
                hint="lower min_workers or raise max_workers",
            )


_WHOLE_NUMBERS = {
    "max_workers": 0,
    "min_workers": 0,
    "spares": 0,
    "max_tasks_per_worker": 1,
    "max_worker_nbytes": 1,
    "max_worker_deaths": 1,
    "max_inflight_nbytes": 0,
}
_OPTIONAL = {"max_tasks_per_worker", "max_worker_nbytes"}


def check_whole_number(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """Check a setting.

    Raises:
        ConfigError: It is not a whole number from ``least`` on.
    """
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, not {value!r}")


def check_seconds(name: str, value: object, *, most: float = math.inf) -> None:
    """Check a setting.

    Raises:
        ConfigError: It is not a positive number of seconds, or above ``most``.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= most:  # type: ignore[operator]
        at_most = "" if math.isinf(most) else f", at most {most:g}"
        raise ConfigError(f"{name} must be a positive number of seconds{at_most}, not {value!r}")
