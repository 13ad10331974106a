"""Results moved between a zfast store and Prefect's stock format, a folder of JSON records.

Both are read by decoding values, which runs code that the writer chose: pickles, and the names
that JSON records give. So each file must belong to this user and be writable by nobody else,
unless the caller trusts who wrote it.

A result is moved under its key. Cached results are found by it as before; what Prefect's API has
noted of earlier runs names the place they were in.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from prefect.results import (  # type: ignore[attr-defined]
    ResultRecord,
    ResultRecordMetadata,
)
from prefect.serializers import PickleSerializer, Serializer

from zfast.codec import decode, encode
from zfast.errors import CodecError, ConfigError, StoreError, ZfastError
from zfast.prefect.serializer import ZfastSerializer
from zfast.prefect.tickets import Ticket
from zfast.security.private_files import is_closed
from zfast.store.files import failure, replace_file
from zfast.store.folder import TEMPORARY_FOLDER, FolderStore, open_object
from zfast.store.format import MAGIC, NO_TOKEN, TOKEN_NBYTES, StoredObject
from zfast.store.records import read_record
from zfast.store.walk import files_below

T = TypeVar("T")
OnResult = Callable[[str], None]


@dataclass
class Transfer:
    """What was moved.

    Attributes:
        n_converted: Results written in the other format.
        n_copied: Contents copied as they are: their serializer is neither zfast's nor to be
            changed.
        skipped: Keys that are there already.
        failures: Results that were not moved: key, and why.
    """

    n_converted: int = 0
    n_copied: int = 0
    skipped: list[str] = field(default_factory=list)
    failures: list[tuple[str, ZfastError]] = field(default_factory=list)

    def fail(self, key: str, error: ZfastError) -> None:
        """A result was not moved, or the results in a folder."""
        self.failures.append((key, error))


def import_results(
    source: Path,
    store: FolderStore,
    *,
    trust: bool = False,
    as_is: bool = False,
    overwrite: bool = False,
    on_result: OnResult = lambda _: None,
) -> Transfer:
    """Store every result of a folder that Prefect wrote, under the same key.

    Args:
        source: The folder, such as ``~/.prefect/storage``. It is left as it is.
        store: Where to put them.
        trust: Decode files of other users, too.
        as_is: Decode nothing: keep the records as they are, with the serializer they have. They
            are found and read all the same, no faster than before.
        overwrite: Write over objects that are there.
        on_result: Called with each key before it is moved.

    Raises:
        ConfigError: There is no such folder, or it is the store.
        StoreError: It cannot be listed.
    """
    base = os.path.realpath(source.expanduser())
    if not os.path.isdir(base):
        raise ConfigError(f"there is no folder {base}", hint="give the folder of Prefect's results")
    if base == store.basepath:
        raise ConfigError(f"{base} is the store itself", hint="give another --basepath")
    done = Transfer()
    for key, _ in files_below(base, without=TEMPORARY_FOLDER, on_unread=done.fail):
        if TEMPORARY_FOLDER in key.split("/")[:-1]:
            continue  # of a store in there
        on_result(key)
        path = os.path.join(base, key)
        try:
            if not overwrite and store.exists(key):
                done.skipped.append(key)
                continue
            data = _read(path)
            if data.startswith(MAGIC):
                raise StoreError(
                    f"{path} is an object of a zfast store already",
                    hint="copy the file, or give its folder as the --basepath",
                )
            if as_is:
                store.put(key, data)
                done.n_copied += 1
                continue
            _check_owner(path, base, trust)
            _import(store, key, data)
            done.n_converted += 1
        except ZfastError as error:
            done.fail(key, error)
    return done


def export_results(
    store: FolderStore,
    target: Path,
    *,
    trust: bool = False,
    overwrite: bool = False,
    on_result: OnResult = lambda _: None,
) -> Transfer:
    """Write every object of a store to a folder as Prefect itself would, under the same key.

    Args:
        store: The store. It is left as it is.
        target: The folder; it is made if it is not there.
        trust: Decode objects of other users, too.
        overwrite: Write over files that are there.
        on_result: Called with each key before it is moved.

    Raises:
        ConfigError: The target is in the store.
        StoreError: The store cannot be listed.
    """
    base = os.path.realpath(target.expanduser())
    if os.path.commonpath([base, store.basepath]) == store.basepath:
        raise ConfigError(f"{base} is in the store itself", hint="give another folder")
    done = Transfer()
    for entry in store.scan(done.fail):
        on_result(entry.key)
        path = os.path.join(base, entry.key)
        try:
            if not overwrite and os.path.lexists(path):
                done.skipped.append(entry.key)
                continue
            stored = open_object(store.path_of(entry.key))
            stored.verify()
            data = None
            if _is_ours(stored):
                _check_owner(stored.name, store.basepath, trust)
                data = _export(stored, entry.key, path)
            _write(path, bytes(stored.content) if data is None else data)
        except ZfastError as error:
            done.fail(entry.key, error)
            continue
        if data is None:
            done.n_copied += 1
        else:
            done.n_converted += 1
    return done


def _import(store: FolderStore, key: str, data: bytes) -> None:
    """Store what stock Prefect wrote: a record, metadata alone, or a bare result."""
    token = secrets.token_bytes(TOKEN_NBYTES)
    ticket = bytes(Ticket(token))
    if data.startswith(b"{"):
        metadata = _metadata_alone(data)
        if metadata is not None:
            store.put(key, _moved(metadata, ZfastSerializer(), key).dump_bytes())
            return
        record = _decoding(key, lambda: ResultRecord[Any].deserialize(data))
        moved = _moved(record.metadata, ZfastSerializer(), store.path_of(key))
        content = b'{"metadata":%s,"result":"%s"}' % (moved.dump_bytes(), ticket)
        store.put(key, content, encode(record.result), token)
        return
    value = _decoding(key, lambda: PickleSerializer().loads(data))
    store.put(key, ticket, encode(value), token)


def _export(stored: StoredObject, key: str, path: str) -> bytes:
    """Write an object of ours as stock Prefect would."""
    content = bytes(stored.content)
    metadata = _metadata_alone(content)
    if metadata is not None:
        return _moved(metadata, PickleSerializer(), key).dump_bytes()
    if read_record(content) is None:
        assert stored.payload is not None
        value = decode(stored.payload, copy=True)
        return _decoding(path, lambda: PickleSerializer().dumps(value))
    if stored.payload is not None:
        metadata = ResultRecord[Any].model_validate_json(content).metadata
        value = decode(stored.payload, copy=True)
    else:
        record = _decoding(path, lambda: ResultRecord[Any].deserialize(content))
        metadata, value = record.metadata, record.result
    moved = ResultRecord[Any](metadata=_moved(metadata, PickleSerializer(), path), result=value)
    return _decoding(path, moved.serialize)


def _is_ours(stored: StoredObject) -> bool:
    """Say whether a zfast serializer wrote it, so that only zfast can read it."""
    if stored.token != NO_TOKEN:
        return True
    content = bytes(stored.content)
    record = read_record(content)
    if record is None:
        metadata = _metadata_alone(content)
        return metadata is not None and metadata.serializer.type.startswith("zfast")
    return record.serializer is not None and record.serializer.startswith("zfast")


def _metadata_alone(data: bytes) -> ResultRecordMetadata | None:
    """Read metadata that have a file of their own; None if these are not such."""
    if not data.startswith(b'{"storage_key":'):
        return None
    try:
        return ResultRecordMetadata.load_bytes(data)
    except ValueError:
        return None


def _moved(
    metadata: ResultRecordMetadata, serializer: Serializer[Any], storage_key: str
) -> ResultRecordMetadata:
    # By its absolute path a result is found without any block. Metadata of a `key_storage` lie in
    # another folder than the result, which is found by its key in the block of the task.
    changes = {"serializer": serializer, "storage_key": storage_key, "storage_block_id": None}
    return metadata.model_copy(update=changes)


def _decoding(name: str, decode_it: Callable[[], T]) -> T:
    try:
        return decode_it()
    except ZfastError:
        raise
    except Exception as error:
        raise CodecError(
            f"{name} cannot be converted: {type(error).__name__}: {error}",
            hint="install what it was made with, or move it as it is (`import --as-is`)",
        ) from error


def _read(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StoreError(f"{path} is not a file", hint="remove it from the folder")
        return Path(path).read_bytes()
    except StoreError:
        raise
    except OSError as error:
        raise failure("cannot read", path, error) from error


def _write(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        replace_file(path, [memoryview(data)], folder, durable=False)
    except OSError as error:
        raise failure("cannot write", path, error) from error


def _check_owner(path: str, base: str, trust: bool) -> None:
    """Check that nobody but this user can have written a file.

    Raises:
        StoreError: Somebody can.
    """
    if trust:
        return
    folder = os.path.dirname(path)
    if not (_is_mine(path) and _folder_is_mine(folder, base)):
        raise StoreError(
            f"{path} may have been written by another user, and to decode it runs what its writer "
            "chose",
            hint="if you trust everyone who can write there: --trust-pickles",
        )


@lru_cache(maxsize=4096)
def _folder_is_mine(folder: str, base: str) -> bool:
    return _is_mine(folder) and (folder == base or _folder_is_mine(os.path.dirname(folder), base))


def _is_mine(path: str) -> bool:
    try:
        return is_closed(os.stat(path), readable=True)
    except OSError:
        return False
