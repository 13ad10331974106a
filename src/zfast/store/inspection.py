"""Objects looked at without being mapped: what they are, and whether they are whole.

Everything is read with plain reads, piece by piece: memory stays flat, and a disk that fails is an
error here, where touching a mapped page would end the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import xxhash

from zfast.errors import KeyNotFoundError, ObjectCorruptError, StoreError, UnknownObjectError
from zfast.store.compression import RAW
from zfast.store.files import read_from
from zfast.store.folder import Entry, FolderStore
from zfast.store.format import (
    HEADER_NBYTES,
    NO_TOKEN,
    Head,
    StoredBuffer,
    corrupt,
    open_buffer,
    parse_head,
)
from zfast.store.heads import read_head
from zfast.store.records import METADATA_MAX_NBYTES, Record, read_record
from zfast.store.walk import OnUnread, fail

PIECE_NBYTES = 1024 * 1024


@dataclass(frozen=True)
class Description:
    """An object from inside, but for its data.

    Attributes:
        head: Its lengths and its format version.
        buffers: Where its buffers are.
        record: What Prefect says of it; None if that is kept elsewhere.
    """

    head: Head
    buffers: tuple[StoredBuffer, ...]
    record: Record | None

    @property
    def has_ticket(self) -> bool:
        """Whether the value is beside the content, as the serializer "zfast" stores it."""
        return self.head.token != NO_TOKEN


@dataclass(frozen=True)
class Trouble:
    """A file that was not found whole: its key, and the error that says why."""

    key: str
    error: StoreError

    @property
    def is_damage(self) -> bool:
        """Whether it is surely an object of ours, and not what was written.

        Else it could not be read, is no object, or is of a newer zfast: nothing to delete.
        """
        return isinstance(self.error, ObjectCorruptError) and not isinstance(
            self.error, UnknownObjectError
        )


def describe(store: FolderStore, key: str) -> Description:
    """Read what an object says of itself, checked.

    Raises:
        KeyNotFoundError: There is none.
        ObjectCorruptError: Its head is damaged.
        StoreError: It cannot be read.
    """
    path = store.path_of(key)
    head, data, buffers = read_from(path, partial(read_head, name=path), is_use=False)
    return Description(head, buffers, read_record(data[head.content_start : head.header_start]))


def peek_record(store: FolderStore, key: str) -> Record | None:
    """Read what Prefect says of an object, unchecked, from its first few kilobytes.

    Raises:
        StoreError: There is no such object, or not one of ours, or it cannot be read.
    """
    path = store.path_of(key)

    def read(fd: int, status: os.stat_result) -> bytes:
        header = memoryview(os.pread(fd, HEADER_NBYTES, 0))
        head = parse_head(header, status.st_size, name=path)
        content_nbytes = head.header_start - head.content_start
        return os.pread(fd, min(content_nbytes, METADATA_MAX_NBYTES), head.content_start)

    return read_record(read_from(path, read, is_use=False))


def verify(store: FolderStore, key: str) -> None:
    """Check every byte of an object: head, buffers, and the zeros between them.

    Raises:
        KeyNotFoundError: There is none.
        ObjectCorruptError: It is not what was written.
        StoreError: It cannot be read.
    """
    path = store.path_of(key)
    read_from(path, partial(_verify, path), is_use=False)


def verify_all(
    store: FolderStore, on_unread: OnUnread = fail
) -> Iterator[tuple[Entry, Trouble | None]]:
    """Verify every file that is there, one after the other, while others read and write.

    Objects that are removed meanwhile are passed over; replaced ones are whole, old or new.

    Args:
        on_unread: See `FolderStore.scan`.

    Raises:
        StoreError: The store cannot be listed; or what `on_unread` raises.
    """
    for entry in store.scan(on_unread):
        try:
            verify(store, entry.key)
        except KeyNotFoundError:
            continue
        except StoreError as error:
            yield entry, Trouble(entry.key, error)
        else:
            yield entry, None


def _verify(path: str, fd: int, status: os.stat_result) -> None:
    head, _, buffers = read_head(fd, status, name=path)
    end = head.data_start if buffers else head.header_end
    for index, buffer in enumerate(buffers):
        if any(os.pread(fd, buffer.offset - end, end)):
            raise corrupt(path, f"the bytes before buffer {index} are not zero")
        end = buffer.offset + buffer.stored_nbytes
        digest = xxhash.xxh3_64()
        for piece in _pieces(fd, buffer.offset, end):
            digest.update(piece)
        if digest.intdigest() != buffer.checksum:
            raise corrupt(path, f"the checksum of buffer {index} is wrong")
        if buffer.codec != RAW:
            stored = b"".join(_pieces(fd, buffer.offset, end))
            open_buffer(index, buffer, memoryview(stored), name=path)


def _pieces(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (piece := os.pread(fd, min(PIECE_NBYTES, end - start), start)):
        start += len(piece)
        yield piece
