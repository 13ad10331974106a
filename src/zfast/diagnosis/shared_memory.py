"""Can processes here share memory, and is it of the fast kind?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zfast.diagnosis.finding import Finding, Level

_CHECK = "shared memory"
_PROBE_NBYTES = 2 << 20
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def check_shared_memory() -> Iterator[Finding]:
    """Make, write and drop a segment of each kind, as a worker would."""
    from zfast import _arena
    from zfast.arena import ArenaSettings
    from zfast.errors import ConfigError

    try:
        settings = ArenaSettings.from_environment()
    except ConfigError as error:
        yield Finding(_CHECK, Level.PROBLEM, error.message, error.hint or "")
        return
    folders = {"memfd": "", "shm": settings.shm_folder, "disk": settings.disk_folder}
    errors = {
        backing: _arena.probe(backing, folder, _PROBE_NBYTES) for backing, folder in folders.items()
    }
    wanted = [settings.backing] if settings.backing else list(folders)
    works = next((backing for backing in wanted if not errors[backing]), None)
    if works is None:
        yield Finding(
            _CHECK,
            Level.SLOW,
            f"none can be had: {wanted[0]} fails with {os.strerror(errors[wanted[0]])!r}; results "
            "travel through the flow's process",
            hint="look at ulimit -a, and at ZFAST_ARENA_BACKING",
        )
    elif works == "memfd":
        yield Finding(_CHECK, Level.OK, "memfd works: results are handed over without a copy")
    elif works == "shm":
        nbytes = _free(settings.shm_folder)
        yield Finding(
            _CHECK,
            Level.SLOW,
            f"files in {settings.shm_folder} are used, where {nbytes >> 20} MiB are free",
            hint="memfd has no such bound: unset ZFAST_ARENA_BACKING, or run the container with "
            "--shm-size",
        )
    else:
        yield Finding(
            _CHECK,
            Level.SLOW,
            f"files in {settings.disk_folder} on a disk are used",
            hint="memfd is much faster: unset ZFAST_ARENA_BACKING, or see ulimit -a",
        )


def check_huge_pages(setting: Path = _HUGE_PAGES) -> Iterator[Finding]:
    """Read whether shared memory may have huge pages: the one in brackets is in force."""
    try:
        text = setting.read_text()
    except OSError:
        return
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen in ("never", "deny"):
        yield Finding(
            "huge pages",
            Level.NOTE,
            f"shared memory has none: {setting} says {chosen!r}; the first write to each new "
            "segment takes a fault for every 4 KiB",
            hint=f"echo advise > {setting}; warm segments are used again and gain nothing",
        )
    else:
        yield Finding("huge pages", Level.OK, f"shared memory may have them ({chosen})")


def _free(folder: str) -> int:
    try:
        info = os.statvfs(folder)
    except OSError:
        return 0
    return info.f_bavail * info.f_frsize
