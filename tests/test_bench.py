"""``zfast bench``, and what a comparison of revisions concludes from rounds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from zfast.benchmark.statistics import Verdict, judge, median_interval, paired_ratios

ROWS, PASSES = 3, 101
ZFAST = [sys.executable, "-c", "from zfast.cli import main; main()"]


def rounds(rng, slowdown, noise):
    """Seconds of old and new, in turns, on a machine that drifts, hiccups and scatters."""
    before, now, speed = [], [], 1.0
    for _ in range(PASSES):
        speed *= rng.lognormvariate(0, 0.05)  # drift, for both
        hiccup = [rng.choice([1] * 15 + [3]) for _ in range(2)]
        before.append(speed * rng.lognormvariate(0, noise) * hiccup[0])
        now.append(speed * rng.lognormvariate(0, noise) * hiccup[1] * slowdown)
    return before, now


def verdicts(seed, slowdown, noise):
    """The verdicts of one comparison, the first row slowed down."""
    rng = random.Random(seed)
    return [
        judge(paired_ratios(*rounds(rng, slowdown if row == 0 else 1.0, noise)), rows=ROWS).verdict
        for row in range(ROWS)
    ]


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_unchanged_code_raises_no_alarm(noise):
    assert not [seed for seed in range(20) if Verdict.SLOWER in verdicts(seed, 1.0, noise)]


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_alarms_are_as_rare_as_promised(noise):
    alarms = sum(Verdict.SLOWER in verdicts(seed, 1.0, noise) for seed in range(500))
    assert alarms <= 5  # one of a hundred


@pytest.mark.parametrize(
    ("slowdown", "noise"), [(1.2, 0.1), (1.2, 0.05), (1.05, 0.02), (1.05, 0.005)]
)
def test_a_slower_core_is_caught_every_time_in_that_row_alone(slowdown, noise):
    for seed in range(10):
        assert verdicts(seed, slowdown, noise) == [Verdict.SLOWER, Verdict.SAME, Verdict.SAME]


def test_what_noise_hides_is_not_claimed():
    caught = sum(verdicts(seed, 1.05, 0.05)[0] is Verdict.SLOWER for seed in range(100))
    assert 0 < caught < 60


def test_a_faster_core_is_said_to_be_faster():
    assert verdicts(1, 0.8, 0.03)[0] is Verdict.FASTER


def test_too_few_rounds_say_so():
    assert judge([1.5] * 5).verdict is Verdict.TOO_FEW
    assert judge([]).verdict is Verdict.TOO_FEW


def test_the_interval_holds_the_median_as_often_as_promised():
    rng = random.Random(3)
    missed = 0
    for _ in range(1000):
        low, high = median_interval([rng.expovariate(1) for _ in range(21)], 0.05)
        missed += not low <= 0.6931 <= high
    assert missed <= 65


class Checker(HTMLParser):
    """Collects tags, and what a page would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]


def test_zfast_bench_writes_json_and_a_page_that_loads_nothing(tmp_path):
    folder = tmp_path / "[red]made for it"
    command = [*ZFAST, "bench", "--small", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "timings say nothing" in done.stdout
    (result,), (page,) = folder.glob("*.json"), folder.glob("*.html")
    assert f"{result}\n{page}\n" in done.stdout
    content = json.loads(result.read_text())
    assert content["versions"]["zfast"]
    assert len(content["limits"]) == 15
    assert all(len(row["zfast_s"]) == len(row["reference_s"]) >= 3 for row in content["rows"])
    checker = Checker()
    checker.feed(page.read_text())
    assert checker.loads == []
    assert checker.tags.count("svg") == 1
    assert checker.tags.count("rect") == len(content["rows"]) == 7


@pytest.mark.parametrize("folder", ["/dev/null/x", "/proc"])
def test_a_folder_that_takes_no_file_is_told_before_the_measurement(folder):
    command = [*ZFAST, "bench", "--small", "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"zfast: cannot write into {folder}: ")


def test_a_row_that_does_not_exist_is_refused(tmp_path):
    command = [*ZFAST, "bench", "--rows", "nonsense"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "no row has 'nonsense'" in done.stderr
    assert list(tmp_path.iterdir()) == []
