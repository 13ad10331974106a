from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfast.codec import Payload
from zfast.errors import ObjectCorruptError
from zfast.store.format import HEADER_NBYTES, MAGIC, NO_TOKEN, StoredObject, build, parse

TOKEN = bytes(range(16))
buffers = st.lists(st.binary(max_size=200), max_size=5)


def whole(content: bytes, payload: Payload | None = None, token: bytes = NO_TOKEN) -> bytes:
    return b"".join(build(content, payload, token))


def parsed(data: bytes) -> StoredObject:
    return parse(memoryview(data), name="it")


def payload_of(header: bytes, parts: list[bytes]) -> Payload:
    return Payload(header, [memoryview(part) for part in parts])


@given(st.binary(max_size=300), st.binary(max_size=300), buffers)
def test_round_trip(content: bytes, header: bytes, parts: list[bytes]) -> None:
    stored = parsed(whole(content, payload_of(header, parts), TOKEN))
    stored.verify()
    assert stored.content == content
    assert stored.token == TOKEN
    assert stored.payload is not None
    assert stored.payload.header == header
    assert [bytes(buffer) for buffer in stored.payload.buffers] == parts


@given(st.binary(max_size=300))
def test_round_trip_of_content_alone(content: bytes) -> None:
    stored = parsed(whole(content))
    assert stored.content == content
    assert stored.payload is None
    assert stored.token == NO_TOKEN


@given(st.binary(max_size=50), buffers)
def test_buffers_are_aligned(content: bytes, parts: list[bytes]) -> None:
    data = whole(content, payload_of(b"h", parts))
    for index in range(len(parts)):
        (offset,) = struct.unpack_from("<Q", data, HEADER_NBYTES + 24 * index)
        assert offset % 64 == 0


def test_parts_are_not_joined_or_copied() -> None:
    content, buffer = bytes(1000), memoryview(bytearray(1000))
    parts = build(content, Payload(b"h", [buffer]))
    assert any(part.obj is content for part in parts)
    assert any(part is buffer for part in parts)


def test_cut_at_any_byte_is_refused() -> None:
    data = whole(b"content", payload_of(b"header", [b"a" * 100, b"b" * 3]), TOKEN)
    for size in range(len(data)):
        with pytest.raises(ObjectCorruptError):
            parsed(data[:size])


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(ObjectCorruptError, match="header says"):
        parsed(whole(b"content") + b"\0")


def test_any_flipped_byte_before_the_buffers_is_refused() -> None:
    data = bytearray(whole(b"content", payload_of(b"header", [b"a" * 100]), TOKEN))
    (start,) = struct.unpack_from("<Q", data, HEADER_NBYTES)
    for index in range(start):
        for bit in (1, 128):
            data[index] ^= bit
            with pytest.raises(ObjectCorruptError):
                parsed(bytes(data))
            data[index] ^= bit
    parsed(bytes(data)).verify()


def test_a_flipped_byte_in_a_buffer_is_found_by_verify() -> None:
    data = bytearray(whole(b"", payload_of(b"", [b"a" * 100, b"b" * 100])))
    data[-1] ^= 1
    stored = parsed(bytes(data))
    with pytest.raises(ObjectCorruptError, match="buffer 1"):
        stored.verify()


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    for candidate in (data, MAGIC + data, MAGIC + b"\1\0" + data):
        with pytest.raises(ObjectCorruptError):
            parsed(candidate)


def test_a_newer_version_is_named() -> None:
    data = bytearray(whole(b""))
    data[8] = 3
    with pytest.raises(ObjectCorruptError, match=r"format version 3, .* 1 to 2 .* upgrade zfast"):
        parsed(bytes(data))


def test_a_foreign_file_is_named() -> None:
    with pytest.raises(ObjectCorruptError, match=r"some/file .* not an object of a zfast store"):
        parse(memoryview(b'{"metadata": {}}' * 10), name="some/file")
