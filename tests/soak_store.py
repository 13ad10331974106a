"""The result store under load for minutes, and under hundreds of kill -9.

    python tests/soak_store.py [--minutes 10] [--kills 500] [--processes 16] [--seed 1]

Load: processes write and read objects of 1 KB to 8 MB, under keys of their own and keys they
share, while one collects; every read is compared. There must be no error, and memory and
descriptors must stay flat.

Kills: writers note in a journal what they are about to store, and what the store has acknowledged;
writers, readers and a collector are killed at random. After each kill every acknowledged object of
the victim must be there, whole, in that version or a later one; in the end `verify` must be clean
and nothing may be left of the dead.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from zfast.codec import Payload
from zfast.errors import KeyNotFoundError
from zfast.store import FolderStore, StoredObject
from zfast.store.inspection import verify_all
from zfast.store.retention import collect

SIZES = {"1 KB": 1_000, "64 KB": 64_000, "1 MB": 1_000_000, "8 MB": 8_000_000}
WEIGHTS = (50, 30, 18, 2)
#: What a value is a part of: half of it compresses.
MATTER = os.urandom(5_000_000) + bytes(range(256)) * 20_000
N_KEYS = 8
MAX_GROWTH_NBYTES = 16_000_000
#: Time of an operation, on a logarithmic scale of 2 % steps from 1 µs.
STEP = math.log(1.02)

_NOTE = struct.Struct("<cIQ")


def value(version: int, nbytes: int) -> Payload:
    """The value of a version: two buffers, not copied."""
    start = version * 7919 % (len(MATTER) - nbytes)
    whole = memoryview(MATTER)[start : start + nbytes]
    return Payload(b"%d" % version, [whole[: nbytes // 3], whole[nbytes // 3 :]])


def put(store: FolderStore, key: str, version: int, nbytes: int) -> None:
    store.put(key, b"%d %d" % (version, nbytes), value(version, nbytes))


def check(stored: StoredObject) -> int:
    """Compare an object with what it must be; its version."""
    stored.verify()
    version, nbytes = map(int, bytes(stored.content).split())
    expected = value(version, nbytes)
    assert stored.payload is not None
    assert stored.payload.header == expected.header
    assert stored.payload.buffers == expected.buffers, stored.name
    return version


#: Linux's ``<sys/prctl.h>``.
PR_SET_PDEATHSIG = 1


def fork(run: Callable[[], None]) -> int:
    """Run something in a child, which ends with 0 if it went well."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it writes on for ever
        run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


# --- load ------------------------------------------------------------------------------------


class Times:
    """Times of operations, in memory that does not grow."""

    def __init__(self) -> None:
        self.counts = {
            f"{operation} {size}": [0] * 1200 for operation in ("put", "get") for size in SIZES
        }

    def add(self, operation: str, seconds: float) -> None:
        step = int(math.log(max(seconds * 1e6, 1.0)) / STEP)
        self.counts[operation][min(step, 1199)] += 1

    def merge(self, counts: dict[str, list[int]]) -> None:
        for operation, theirs in counts.items():
            ours = self.counts[operation]
            self.counts[operation] = [a + b for a, b in zip(ours, theirs, strict=True)]

    def quantile_ms(self, operation: str, share: float) -> float:
        counts = self.counts[operation]
        left = share * sum(counts)
        for step, count in enumerate(counts):
            left -= count
            if left <= 0:
                return math.exp(step * STEP) / 1000
        return math.inf


def memory_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def load(folder: Path, index: int, seconds: float, seed: int) -> None:
    """Write and read for some time, then report to a file."""
    numbers = random.Random(seed * 1000 + index)
    store = FolderStore(str(folder / "store"), compression="zstd" if index % 4 == 3 else None)
    times = Times()
    sizes = list(SIZES)
    began = time.monotonic()
    version = 0
    early: tuple[int, int] | None = None
    while (elapsed := time.monotonic() - began) < seconds:
        if early is None and elapsed > seconds / 4:
            early = memory_nbytes(), n_descriptors()
        size = numbers.choices(sizes, WEIGHTS)[0]
        owner = numbers.choice([index, "shared"])
        key = f"{owner}/{size}/{numbers.randrange(N_KEYS)}"
        operation = numbers.choice(["put", "get"])
        if index == 0 and version % 500 == 499:
            collect(store)
        if operation == "put":
            version += 1
            start = time.perf_counter()
            put(store, key, version, SIZES[size])
        else:
            start = time.perf_counter()
            try:
                stored = store.get(key)
            except KeyNotFoundError:
                assert not store.exists(key) or owner == "shared"
                continue
            check(stored)
            del stored
        times.add(f"{operation} {size}", time.perf_counter() - start)
    assert early is not None
    growth = memory_nbytes() - early[0]
    assert n_descriptors() <= early[1], "descriptors were used up"
    report = {"growth_nbytes": growth, "counts": times.counts}
    (folder / f"report-{index}").write_text(json.dumps(report))


def soak_load(seconds: float, n_processes: int, seed: int) -> dict[str, object]:
    """Run the load; what was done, and how long it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pids = [
            fork(lambda index=index: load(folder, index, seconds, seed))  # type: ignore[misc]
            for index in range(n_processes)
        ]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        assert not any(statuses), f"processes failed: {statuses}"
        reports = [json.loads(path.read_text()) for path in folder.glob("report-*")]
        store = FolderStore(str(folder / "store"))
        assert_clean(store)
    times = Times()
    for report in reports:
        times.merge(report["counts"])
    growth = max(report["growth_nbytes"] for report in reports)
    assert growth < MAX_GROWTH_NBYTES, f"memory grew by {growth} bytes"
    return {
        "processes": n_processes,
        "operations": sum(map(sum, times.counts.values())),
        "memory growth, worst process, MB": round(growth / 1e6, 1),
        **{
            f"{operation} p50/p99 ms": [
                round(times.quantile_ms(operation, share), 3) for share in (0.5, 0.99)
            ]
            for operation, counts in times.counts.items()
            if any(counts)
        },
    }


# --- kills -----------------------------------------------------------------------------------


class Slot:
    """A process that is killed and begun anew, and what its journal says of its keys."""

    def __init__(self, folder: Path, index: int, role: str) -> None:
        self.index = index
        self.role = role
        self.basepath = str(folder / "store")
        self.journal = folder / f"journal-{index}"
        self.journal.touch()
        self.pid = 0

    def begin(self, n_slots: int, seed: int) -> None:
        run = {"writer": self.write, "reader": self.read, "collector": self.collect}[self.role]
        self.pid = fork(lambda: run(n_slots, random.Random(seed)))

    def store(self) -> FolderStore:
        return FolderStore(self.basepath, compression="zstd" if self.index % 2 else None)

    def write(self, _: int, numbers: random.Random) -> None:
        store = self.store()
        version = max((intended for _, intended in self.notes().values()), default=0)
        journal = os.open(self.journal, os.O_WRONLY | os.O_APPEND)
        while True:
            version += 1
            key = numbers.randrange(N_KEYS)
            nbytes = SIZES[numbers.choices(list(SIZES), WEIGHTS)[0]]
            os.write(journal, _NOTE.pack(b"i", key, version))
            put(store, f"{self.index}/{key}", version, nbytes)
            os.write(journal, _NOTE.pack(b"a", key, version))
            if version % 5 == 0:
                put(store, "shared", version, nbytes)

    def read(self, n_slots: int, numbers: random.Random) -> None:
        store = self.store()
        while True:
            key = f"{numbers.randrange(n_slots)}/{numbers.randrange(N_KEYS)}"
            try:
                check(store.get(numbers.choice([key, "shared"])))
            except KeyNotFoundError:
                continue

    def collect(self, _: int, __: random.Random) -> None:
        store = self.store()
        while True:
            collect(store)

    def notes(self) -> dict[int, tuple[int, int]]:
        """For each key the version acknowledged last, or 0, and the one intended last."""
        notes: dict[int, tuple[int, int]] = {}
        for kind, key, version in _NOTE.iter_unpack(self.journal.read_bytes()):
            acknowledged, intended = notes.get(key, (0, 0))
            notes[key] = (version, intended) if kind == b"a" else (acknowledged, version)
        return notes

    def check(self) -> int:
        """Check every acknowledged object; how many there are."""
        store = FolderStore(self.basepath)
        n_acknowledged = 0
        for key, (acknowledged, intended) in self.notes().items():
            n_acknowledged += acknowledged > 0
            try:
                version = check(store.get(f"{self.index}/{key}"))
            except KeyNotFoundError:
                assert not acknowledged, f"{self.index}/{key} was acknowledged and is lost"
                continue
            assert acknowledged <= version <= intended, (key, acknowledged, version, intended)
        return n_acknowledged

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert status == signal.SIGKILL, f"a {self.role} had ended by itself: {status}"


def soak_kills(n_kills: int, seed: int) -> dict[str, object]:
    """Run the kills; what happened."""
    numbers = random.Random(seed)
    counts: Counter[str] = Counter()
    roles = ["writer"] * 6 + ["reader"] * 3 + ["collector"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slots = [Slot(folder, index, role) for index, role in enumerate(roles)]
        for slot in slots:
            slot.begin(len(slots), numbers.randrange(2**32))
        for _ in range(n_kills):
            time.sleep(numbers.expovariate(100))  # at any moment: there is nothing to wait for
            slot = numbers.choice(slots)
            slot.kill()
            counts[f"{slot.role}s killed"] += 1
            slot.check()
            slot.begin(len(slots), numbers.randrange(2**32))
        for slot in slots:
            slot.kill()
        store = FolderStore(slots[0].basepath)
        n_acknowledged = sum(slot.check() for slot in slots)
        n_notes = sum(slot.journal.stat().st_size for slot in slots) // _NOTE.size
        store.sweep()
        assert_clean(store)
        left = [path for path in Path(store.basepath, ".zfast").glob("*") if path.is_file()]
        assert left == [], "files of dead writers are left"
    return {
        **counts,
        "acknowledged objects": n_acknowledged,
        "writes": n_notes // 2,
    }


def assert_clean(store: FolderStore) -> None:
    n_objects = 0
    for _, damage in verify_all(store):
        assert damage is None, damage
        n_objects += 1
    assert n_objects


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    reports = []
    if arguments.kills:
        started = time.monotonic()
        reports.append(soak_kills(arguments.kills, arguments.seed))
        reports[-1]["seconds"] = round(time.monotonic() - started)
    if arguments.minutes:
        reports.append(soak_load(60 * arguments.minutes, arguments.processes, arguments.seed))
        reports[-1]["minutes"] = arguments.minutes
    for report in reports:
        print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
