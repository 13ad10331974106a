"""The kernel's out-of-memory killer: has it been at work?"""

from __future__ import annotations

from pathlib import Path


def n_oom_kills() -> int | None:
    """How many processes it has killed in this process's cgroup, else on this machine.

    Returns:
        None where the system does not say.
    """
    for path, key in _counters():
        try:
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
        except (OSError, ValueError):
            continue
    return None


def _counters() -> list[tuple[Path, str]]:
    counters = [(Path("/proc/vmstat"), "oom_kill")]
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return counters
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            path = Path(f"/sys/fs/cgroup{group}/memory.events")
        elif "memory" in controllers.split(","):
            path = Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
        else:
            continue
        counters.insert(0, (path, "oom_kill"))
    return counters
