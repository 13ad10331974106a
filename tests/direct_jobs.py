"""Jobs that make large arrays, take them and pass them on; imported by workers too."""

from __future__ import annotations

import numpy as np

from zfast import arena

MIB = 1 << 20


def numbers(seed, nbytes):
    """The array that a seed stands for; no two are alike in any place."""
    return np.arange(nbytes // 8, dtype=np.int64) * 1000 + seed


def is_right(array, seed, nbytes):
    return array.nbytes == nbytes and bool(np.array_equal(array, numbers(seed, nbytes)))


def make(argument, _):
    journal, key, seed, nbytes = argument
    journal.note(key, "begin")
    return numbers(seed, nbytes)


def make_many(argument, _):
    """Arrays of these sizes, each of another seed."""
    seed, sizes = argument
    return [numbers(seed + n, nbytes) for n, nbytes in enumerate(sizes)]


def take(journal, key, seed, nbytes):
    """A job whose argument is such an array: whether it came right."""

    def check(array, _):
        journal.note(key, "begin")
        return is_right(array, seed, nbytes)

    return check


def pass_on(array, _):
    """The argument, and its second half."""
    return {"whole": array, "half": array[len(array) // 2 :]}


def take_passed_on(seed, nbytes):
    def check(passed, _):
        whole, half = passed["whole"], passed["half"]
        return is_right(whole, seed, nbytes) and bool(
            np.array_equal(half, whole[len(whole) // 2 :])
        )

    return check


def n_publications(*_):
    """How much of this worker's memory somebody may read."""
    return arena.statistics().n_publications
