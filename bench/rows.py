"""A run's JSON as groups of rows, and the words that tables and charts use for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PACKAGES = [
    *("zfast", "pyzmq", "numpy", "pandas", "pyarrow", "prefect", "proxystore"),
    *("prefect-dask", "distributed", "prefect-ray", "ray"),
]


@dataclass
class Row:
    """One peer in one group. Durations are seconds a round, in the order they were measured."""

    peer: str
    work: float
    unit: str
    durations: list[float]
    #: Peak memory beyond what was held before, in sizes of the payload.
    peak_memory_ratio: float | None = None
    #: Page faults a round.
    minor_faults: float | None = None
    #: The same with hardly a payload, in the same passes.
    base: list[float] | None = None
    #: How often the payload went to another process, where that is not a matter of course.
    elsewhere: float | None = None
    #: The share of messages that came, where a peer may lose some.
    arrived: float | None = None
    #: No peer, but what the machine can do.
    limit: bool = False
    #: The chart that shows this row beside those of other groups, and where on it.
    chart: str | None = None
    payload_nbytes: int | None = None

    @property
    def median(self) -> float:
        """The median duration of a round."""
        return median(self.durations)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        return spread(self.durations)

    @property
    def beyond_base(self) -> list[float] | None:
        """How much longer than with hardly a payload, pass by pass; noise may make it negative."""
        if self.base is None:
            return None
        return [took - base for took, base in zip(self.durations, self.base, strict=True)]


#: What a row is made of besides its durations.
ROW_KEYS = [field.name for field in fields(Row) if field.name != "durations"]


@dataclass
class Group:
    """Rows that are compared with each other, and rows that were lost, with the reason."""

    name: str
    reference: str | None = None
    rows: list[Row] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def reference_row(self) -> Row | None:
        """The row that ratios refer to, unless it was lost."""
        return next((row for row in self.rows if row.peer == self.reference), None)

    def speedup(self, row: Row) -> float | None:
        """How many times faster than the reference: the median over the passes."""
        speedups = self.speedups(row)
        return median(speedups) if speedups else None

    def speedup_spread(self, row: Row) -> tuple[float, float] | None:
        """Quartiles of the same."""
        speedups = self.speedups(row)
        return spread(speedups) if speedups else None

    def speedups(self, row: Row) -> list[float]:
        """The same, pass by pass; empty if the reference was lost."""
        # Pass by pass: what slows the machine for a while slows both rounds of a pass.
        reference = self.reference_row
        if reference is None:
            return []
        pairs = zip(reference.durations, row.durations, strict=True)
        return [theirs / ours for theirs, ours in pairs]


@dataclass
class Run:
    """What one run of the benchmarks says."""

    machine: dict[str, Any]
    groups: list[Group]
    smoke: bool


def spread(values: list[float]) -> tuple[float, float]:
    """Quartiles; of a single value, itself twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def installed_versions() -> dict[str, str]:
    """Versions of what is measured, as far as it is installed, and of libzmq."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    import zmq

    return {**versions, "libzmq": zmq.zmq_version()}


def load_run(path: Path) -> Run:
    """Read pytest-benchmark's JSON of a run, or a baseline made from it."""
    content = json.loads(path.read_text())
    groups: dict[str, Group] = {}
    for benchmark in content["benchmarks"]:
        extra = benchmark["extra_info"]
        group = groups.setdefault(benchmark["group"], Group(benchmark["group"]))
        group.reference = extra["reference"]
        group.rows.append(
            Row(
                durations=benchmark["stats"]["data"],
                **{key: extra[key] for key in ROW_KEYS if key in extra},
            )
        )
    for lost in content.get("lost", []):
        group = groups.setdefault(lost["group"], Group(lost["group"]))
        group.lost[lost["peer"]] = lost["reason"]
    return Run(describe_machine(content["machine_info"]), list(groups.values()), content["smoke"])


def describe_machine(info: dict[str, Any]) -> dict[str, Any]:
    """The part of pytest-benchmark's machine_info that says what the numbers depend on."""
    cpu = info.get("cpu", {})
    return {
        "cpu": info["cpu_model"] if "cpu_model" in info else cpu.get("brand_raw", "unknown"),
        "cores": info.get("cores"),
        "memory_gib": info.get("memory_gib"),
        "system": f"{info.get('system')} {info.get('machine')}",
        "python": info.get("python_version"),
        "versions": info.get("versions", {}),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """One line on the machine and the versions."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}; Python {machine['python']}, {versions}"
    )


def format_rate(row: Row) -> str:
    """What the row does in a unit of time, or the time that one takes."""
    rate = row.work / row.median
    if row.unit == "messages":
        return f"{rate / 1e6:.2f} M msg/s"
    if row.unit == "bytes":
        return f"{rate / 1e9:.2f} GB/s" if rate >= 1e8 else f"{rate / 1e6:.2f} MB/s"
    return f"{format_seconds(row.median / row.work)}/{row.unit.removesuffix('s')}"


def format_ratio(ratio: float | None) -> str:
    """Two or three digits and a times sign."""
    if ratio is None:
        return "–"
    digits = 3 if ratio < 0.1 else 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:.{digits}f} ×"


def format_count(count: float) -> str:
    """Whole numbers, thousands apart; one digit after the point where that says more."""
    return f"{count:.1f}" if 0 < count < 10 else f"{count:,.0f}"


def format_size(nbytes: float) -> str:
    """Bytes in the largest decimal unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:g} {unit}"
    return f"{nbytes:g} B"


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds < 0:
        return f"−{format_seconds(-seconds)}"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return (
                f"{seconds * factor:.3g} {unit}"
                if seconds * factor < 1000
                else (f"{seconds * factor:.0f} {unit}")
            )
    return f"{seconds * 1e9:.3g} ns"
