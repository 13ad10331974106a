"""How much memory and how many descriptors may a process take here?"""

from __future__ import annotations

import resource
from collections.abc import Iterator

from zfast.diagnosis.finding import Finding, Level

_GIB = 1 << 30
#: Less than this, and an arena that takes its share leaves little to work with.
_LITTLE_NBYTES = 1 * _GIB
#: Each connection, shared segment and worker takes some.
_FEW_DESCRIPTORS = 1024


def check_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Iterator[Finding]:
    """Read what the machine and every cgroup above leave to this process.

    Args:
        proc, cgroup: As for ``zfast._arena.read_memory``.
    """
    from zfast import _arena

    memory = _arena.read_memory(proc, cgroup)
    machine = _arena.read_memory(proc, "/nowhere")
    of = f"{memory.available_nbytes / _GIB:.1f} of {memory.total_nbytes / _GIB:.1f} GiB are free"
    if memory.total_nbytes < machine.total_nbytes:
        of += f" in this cgroup, on a machine with {machine.total_nbytes / _GIB:.1f} GiB"
    if memory.available_nbytes < _LITTLE_NBYTES:
        yield Finding(
            "memory",
            Level.SLOW,
            f"{of}: large results do not fit into shared memory and are copied",
            hint="raise the limit of the cgroup or container, or start fewer workers",
        )
    else:
        yield Finding("memory", Level.OK, of)


def check_descriptors() -> Iterator[Finding]:
    """Compare the limit of open files with what a busy server needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_DESCRIPTORS:
        yield Finding(
            "descriptors",
            Level.PROBLEM,
            f"a process may have {soft} open files: strangers' connections alone may take so many",
            hint=f"ulimit -n {hard if hard > 0 else 65536}",
        )
    else:
        yield Finding("descriptors", Level.OK, f"a process may have {soft} open files")
