"""The head of an object, all that is before its first buffer, read without the buffers.

It is read with plain reads, and checked: what it costs does not depend on how large the value is.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from zfast.store.files import read_from, read_start
from zfast.store.format import HEADER_NBYTES, Head, StoredBuffer, parse_buffers, parse_head


class Content(NamedTuple):
    """What is stored beside a value, and the token of the ticket that it names."""

    content: bytes
    token: bytes


def read_head(
    fd: int, status: os.stat_result, *, name: str
) -> tuple[Head, memoryview, tuple[StoredBuffer, ...]]:
    """Read and check a head: its lengths, its bytes, and where the buffers are.

    Args:
        fd: The object's file.
        status: The file's status.
        name: The object, for messages.

    Raises:
        ObjectCorruptError: The head is damaged, or is none.
        OSError: It cannot be read.
    """
    head = parse_head(memoryview(os.pread(fd, HEADER_NBYTES, 0)), status.st_size, name=name)
    data = memoryview(read_start(fd, head.data_start))
    return head, data, parse_buffers(data, head, name=name)


def read_content(path: str) -> Content:
    """Read the content of the object in a file, which is a use of it.

    Raises:
        KeyNotFoundError: There is no such file.
        ObjectCorruptError: Its head is damaged.
        StoreError: It cannot be read.
    """

    def read(fd: int, status: os.stat_result) -> Content:
        head, data, _ = read_head(fd, status, name=path)
        return Content(bytes(data[head.content_start : head.header_start]), head.token)

    return read_from(path, read)
