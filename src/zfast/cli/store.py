"""``zfast store``: look at a result store, check it, clean it up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, Token

from zfast.cli.store_options import (
    FOUND,
    UNCHECKED,
    Basepath,
    Switch,
    format_moment,
    format_size,
    open_store,
    parse_nbytes,
    print_json,
    show_progress,
)
from zfast.errors import StoreError

if TYPE_CHECKING:
    from zfast.store.folder import Entry


def _nbytes(_: object, tokens: Sequence[Token]) -> int:
    return parse_nbytes(tokens[0].value)


app = App(name="store")
app.command(
    "zfast.cli.store_transfer:import_",
    name="import",
    help="Copy in results that Prefect's own storage wrote to a folder.",
)
app.command(
    "zfast.cli.store_transfer:export",
    name="export",
    help="Write the results to a folder as Prefect's own storage would.",
)


@app.command
def ls(*, basepath: Basepath = None, json: Switch = False) -> int:
    """List the objects of a store.

    Parameters
    ----------
    basepath
        The store's folder.  [default: zfast-results in Prefect's home]
    json
        Print JSON to standard output.
    """
    from zfast.store.inspection import peek_record

    store = open_store(basepath)
    objects = []
    unread: list[StoreError] = []
    for entry in store.scan(lambda _, error: unread.append(error)):
        try:
            record = peek_record(store, entry.key)
        except StoreError as error:
            objects.append({**_entry(entry), "error": error.message})
            continue
        objects.append(
            {
                **_entry(entry),
                "expires": format_moment(record.expires_s) if record else None,
                "serializer": record.serializer if record else None,
            }
        )
    if json:
        failures = [error.message for error in unread]
        print_json({"basepath": store.basepath, "objects": objects, "failures": failures})
        return UNCHECKED if unread else 0
    for each in objects:
        note = "damaged, or not an object" if "error" in each else each["serializer"] or "-"
        print(f"{format_size(each['nbytes']):>9}  {each['modified']}  {note:<14} {each['key']}")
    total = sum(each["nbytes"] for each in objects)
    for each_unread in unread:
        print(f"left out: {each_unread}", file=sys.stderr)
    print(f"{len(objects)} objects, {format_size(total)} in {store.basepath}", file=sys.stderr)
    return UNCHECKED if unread else 0


@app.command
def show(key: str, /, *, basepath: Basepath = None, json: Switch = False) -> int:
    """Show what is stored under a key, but for its data.

    Parameters
    ----------
    key
        The key, or the path of its file.
    basepath
        The store's folder.  [default: zfast-results in Prefect's home]
    json
        Print JSON to standard output.
    """
    from zfast.store.compression import CODEC_NAMES
    from zfast.store.inspection import describe

    store = open_store(basepath)
    description = describe(store, key)
    head, record = description.head, description.record
    found: dict[str, Any] = {
        "key": key,
        "path": store.path_of(key),
        "nbytes": head.nbytes,
        "format_version": head.version,
        "content_nbytes": head.header_start - head.content_start,
        "value": "beside the content" if description.has_ticket else "in the content",
        "serializer": record.serializer if record else None,
        "expires": format_moment(record.expires_s) if record else None,
        "buffers": [
            {
                "nbytes": each.nbytes,
                "stored_nbytes": each.stored_nbytes,
                "compression": CODEC_NAMES.get(each.codec),
            }
            for each in description.buffers
        ],
    }
    if json:
        print_json(found)
        return 0
    buffers = found.pop("buffers")
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<15} {'-' if value is None else value}")
    for index, each in enumerate(buffers):
        size = format_size(each["nbytes"])
        packed = f", {each['compression']} {format_size(each['stored_nbytes'])}"
        print(f"buffer {index:<8} {size}{packed if each['compression'] else ''}")
    return 0


@app.command
def verify(*, basepath: Basepath = None, delete: Switch = False, json: Switch = False) -> int:
    """Check every byte of every object; name those that are damaged.

    Files and folders that cannot be read, and files that are no objects or are of a newer zfast,
    are named and left alone.

    Parameters
    ----------
    basepath
        The store's folder.  [default: zfast-results in Prefect's home]
    delete
        Delete the damaged objects that no live process uses: their tasks compute them anew.
    json
        Print JSON to standard output.
    """
    from zfast.store.inspection import verify_all
    from zfast.store.retention import remove_damaged

    store = open_store(basepath)
    n_objects = nbytes = 0
    damaged: list[tuple[Entry, StoreError]] = []
    unchecked: list[tuple[str, StoreError]] = []
    with show_progress("verify", store) as step:
        for entry, trouble in verify_all(store, lambda *unread: unchecked.append(unread)):
            step(entry.key)
            if trouble is not None and not trouble.is_damage:
                unchecked.append((entry.key, trouble.error))
                continue
            n_objects += 1
            nbytes += entry.nbytes
            if trouble is not None:
                damaged.append((entry, trouble.error))
    done = remove_damaged(store, [entry for entry, _ in damaged] if delete else [])
    deleted = {each.key for each in done.removed}
    if json:
        print_json(
            {
                "basepath": store.basepath,
                "n_objects": n_objects,
                "nbytes": nbytes,
                "damaged": [
                    {"key": entry.key, "error": error.message, "deleted": entry.key in deleted}
                    for entry, error in damaged
                ],
                "unchecked": [
                    {"key": key, "error": error.message, "hint": error.hint}
                    for key, error in unchecked
                ],
                "failures": [error.message for error in done.failures],
            }
        )
    else:
        for _, error in damaged:
            print(error.message)
        for _, error in unchecked:
            print(f"left alone: {error}")
        for error in done.failures:
            print(f"left alone: {error.message}", file=sys.stderr)
        parts = [f"{n_objects} objects", format_size(nbytes), f"{len(damaged)} damaged"]
        if deleted:
            parts.append(f"{len(deleted)} deleted")
        if done.n_held:
            parts.append(f"{done.n_held} stay because a live process uses them")
        if unchecked:
            parts.append(f"{len(unchecked)} files or folders not checked")
        print(", ".join(parts))
    if len(deleted) < len(damaged):
        return FOUND
    return UNCHECKED if unchecked else 0


@app.command
def gc(
    *,
    basepath: Basepath = None,
    budget: Annotated[int | None, Parameter(converter=_nbytes)] = None,
    reset_times: Switch = False,
    dry_run: Switch = False,
    json: Switch = False,
) -> int:
    """Remove what has expired, what dead processes left, and what is too much for a budget.

    What a live process has written or read is never removed.

    Parameters
    ----------
    basepath
        The store's folder.  [default: zfast-results in Prefect's home]
    budget
        Evict what was used longest ago until the rest fits, e.g. 20GB or 512MiB.
    reset_times
        After the clock was set back: give objects from the future the present time.
    dry_run
        Remove nothing; say what would be.
    json
        Print JSON to standard output.
    """
    from zfast.store.retention import collect

    store = open_store(basepath)
    with show_progress("gc", store) as step:
        done = collect(
            store,
            budget_nbytes=budget,
            reset_times=reset_times,
            dry_run=dry_run,
            on_object=lambda entry: step(entry.key),
        )
    exceeded = budget is not None and done.nbytes_left > budget
    status = FOUND if exceeded else UNCHECKED if done.unread else 0
    failures = [error.message for error in (*done.unread, *done.failures)]
    if json:
        print_json(
            {
                "basepath": store.basepath,
                "removed": [each._asdict() for each in done.removed],
                "n_orphans": done.n_orphans,
                "n_held": done.n_held,
                "n_left": done.n_left,
                "nbytes_left": done.nbytes_left,
                "clock_behind_s": done.clock_behind_s,
                "failures": failures,
                "dry_run": dry_run,
            }
        )
        return status
    for removed in done.removed:
        print(f"{format_size(removed.nbytes):>9}  {removed.reason:<8} {removed.key}")
    for message in failures:
        print(f"left alone: {message}", file=sys.stderr)
    verb = "would be removed" if dry_run else "removed"
    removed_size = format_size(sum(each.nbytes for each in done.removed))
    left_size = format_size(done.nbytes_left)
    print(
        f"{len(done.removed)} objects {verb}, {removed_size}; "
        f"{done.n_orphans} orphans {verb}; {done.n_left} objects left, {left_size}; "
        f"{done.n_held} stay because a live process uses them"
    )
    if done.clock_behind_s:
        print(
            f"nothing was evicted: the newest object is from {done.clock_behind_s:.0f} s in the "
            "future, so the clock was set back and nobody can say what is oldest; "
            "see --reset-times",
            file=sys.stderr,
        )
    return status


def _entry(entry: Entry) -> dict[str, Any]:
    return {"key": entry.key, "nbytes": entry.nbytes, "modified": format_moment(entry.modified_s)}
