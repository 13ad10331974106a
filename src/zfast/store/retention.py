"""How long objects live: what has expired, what a size budget leaves no room for, and orphans;
and the removal of what `zfast.store.inspection` found damaged.

Nothing that a live process uses is removed (see `zfast.store.leases`), whatever its age. The
clock is trusted only as far as a mistake keeps an object too long: an object from the future means
that the clock was set back, and then no order of age holds, so nothing is evicted by it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from zfast.errors import ConfigError, KeyNotFoundError, StoreError
from zfast.store.files import failure
from zfast.store.folder import Entry, FolderStore
from zfast.store.inspection import describe, peek_record

#: Clocks of hosts that share a store may differ by so much.
CLOCK_TOLERANCE_S = 60.0
#: Removed at one go while nobody comes to hold another object.
BATCH_SIZE = 256

Reason = Literal["expired", "evicted", "damaged"]


class Removed(NamedTuple):
    """An object that was removed, or would be."""

    key: str
    nbytes: int
    reason: Reason


@dataclass
class Collection:
    """What a collection did.

    Attributes:
        removed: The objects removed; with `dry_run`, those that would be.
        n_orphans: Files and leases of dead processes that were removed, or would be.
        n_held: Objects that would have been removed, but for a live process that uses them.
        n_left: Objects left.
        nbytes_left: Bytes of those.
        clock_behind_s: How far the newest object is in the future, if the clock was set back
            (then nothing was evicted), or 0.
        failures: Objects that could not be removed or read, and why. They are left alone.
        unread: Folders that could not be listed, and why: nobody can say what is in them.
    """

    removed: list[Removed] = field(default_factory=list)
    n_orphans: int = 0
    n_held: int = 0
    n_left: int = 0
    nbytes_left: int = 0
    clock_behind_s: float = 0.0
    failures: list[StoreError] = field(default_factory=list)
    unread: list[StoreError] = field(default_factory=list)


def collect(
    store: FolderStore,
    *,
    budget_nbytes: int | None = None,
    reset_times: bool = False,
    dry_run: bool = False,
    on_object: Callable[[Entry], None] = lambda _: None,
) -> Collection:
    """Remove what has expired, then what was used longest ago until the rest fits the budget.

    Args:
        store: The store; others may read and write it meanwhile.
        budget_nbytes: What the objects may take together. None: any.
        reset_times: Give objects from the future the present time, after the clock was set back.
        dry_run: Remove nothing, and say what would be.
        on_object: Called for each object that is looked at.

    Raises:
        ConfigError: The budget is negative.
        StoreError: Nobody can say what is there, or what is in use; nothing was removed.
    """
    if budget_nbytes is not None:
        check_budget(budget_nbytes)
    done = Collection(n_orphans=store.sweep(dry_run=dry_run))
    now = time.time()
    newest_s = now
    expired: list[Entry] = []
    others: list[Entry] = []
    for entry in store.scan(lambda _, error: done.unread.append(error)):
        on_object(entry)
        if entry.used_s > now + CLOCK_TOLERANCE_S and reset_times and not dry_run:
            entry = _reset_time(store, entry, now)
        newest_s = max(newest_s, entry.used_s)
        done.n_left += 1
        done.nbytes_left += entry.nbytes
        try:
            (expired if _has_expired(store, entry.key, now) else others).append(entry)
        except KeyNotFoundError:
            continue  # deleted since
        except StoreError as error:
            done.failures.append(error)  # not ours, or damaged: not ours to remove
    _remove(store, expired, "expired", done, dry_run=dry_run)
    if newest_s > now + CLOCK_TOLERANCE_S:
        done.clock_behind_s = newest_s - now
    elif budget_nbytes is not None:
        others.sort(key=lambda entry: entry.used_s)
        _remove(store, others, "evicted", done, dry_run=dry_run, budget_nbytes=budget_nbytes)
    return done


def remove_damaged(store: FolderStore, damaged: list[Entry]) -> Collection:
    """Remove objects that were found damaged, but for those written again since or in use.

    Raises:
        StoreError: Nobody can say what is in use there; nothing was removed.
    """
    done = Collection(n_left=len(damaged), nbytes_left=sum(entry.nbytes for entry in damaged))
    _remove(store, damaged, "damaged", done, dry_run=False)
    return done


def check_budget(budget_nbytes: int) -> None:
    """Check that a budget is one.

    Raises:
        ConfigError: It is negative.
    """
    if budget_nbytes < 0:
        raise ConfigError(f"a budget of {budget_nbytes} bytes", hint="give 0 bytes or more")


def _reset_time(store: FolderStore, entry: Entry, now: float) -> Entry:
    path = store.path_of(entry.key)
    try:
        os.utime(path, (now, now))
        status = os.lstat(path)
    except OSError:
        return entry
    return Entry.of(entry.key, status)


def _has_expired(store: FolderStore, key: str, now: float) -> bool:
    record = peek_record(store, key)
    if record is None or record.expires_s is None or record.expires_s > now:
        return False
    # A flipped bit may say so, too: now with its checksum.
    record = describe(store, key).record
    return record is not None and record.expires_s is not None and record.expires_s <= now


def _remove(
    store: FolderStore,
    candidates: list[Entry],
    reason: Reason,
    done: Collection,
    *,
    dry_run: bool,
    budget_nbytes: int = -1,
) -> None:
    """Remove candidates that nobody holds, in order, until what is left fits the budget."""
    for start in range(0, len(candidates), BATCH_SIZE):
        if done.nbytes_left <= budget_nbytes:
            return
        with store.leases.held() as held:
            for entry in candidates[start : start + BATCH_SIZE]:
                if done.nbytes_left <= budget_nbytes:
                    return
                if entry.key in held:
                    done.n_held += 1
                elif dry_run or _unlink(store, entry, done):
                    done.removed.append(Removed(entry.key, entry.nbytes, reason))
                    done.n_left -= 1
                    done.nbytes_left -= entry.nbytes


def _unlink(store: FolderStore, entry: Entry, done: Collection) -> bool:
    path = store.path_of(entry.key)
    try:
        if Entry.of(entry.key, os.lstat(path)).identity != entry.identity:
            return False  # written again since
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        done.failures.append(failure("cannot remove", path, error))
        return False
    return True
