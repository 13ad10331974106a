"""The compiled core against the plain-Python wire format, and both against broken bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zfast import _core, _fallback
from zfast.errors import FrameTooLargeError, ProtocolError, VersionMismatchError

payloads = st.lists(st.binary(max_size=200), max_size=20)
buffers = st.lists(st.one_of(st.binary(max_size=300), st.just(bytes(1000))), max_size=8)
INLINE_MAX_NBYTES = 128


def outcome(function, *arguments):
    """What a decoder makes of its input: its value, or the kind and place of its error."""
    try:
        return function(*arguments)
    except ProtocolError as error:
        return type(error), error.frame_index, error.offset


def message_fields(message):
    return (
        message.kind,
        message.flags,
        message.request_id,
        bytes(message.body),
        [bytes(buffer) for buffer in message.buffers],
    )


def both_decode(frames):
    compiled = outcome(lambda: message_fields(_core.decode_message(frames)))
    plain = outcome(lambda: message_fields(_fallback.decode_message(frames)))
    assert compiled == plain
    return compiled


@given(payloads, st.integers(0, 255), st.integers(0, 2**64 - 1))
def test_pack_is_the_specified_bytes_and_unpack_undoes_it(items, kind, request_id):
    packed = _core.pack(items, kind=kind, request_id=request_id)
    assert packed == _fallback.pack(items, kind=kind, request_id=request_id)
    batch = _core.unpack(packed)
    assert [bytes(item) for item in batch] == items
    assert [bytes(item) for item in _fallback.unpack(packed)] == items
    assert batch.to_bytes_list() == items
    assert (batch.kind, batch.request_id, len(batch)) == (kind, request_id, len(items))


def test_a_batch_is_a_sequence_over_one_buffer_and_its_offsets():
    batch = _core.unpack(_core.pack([b"a", b"", b"bcd"]))
    assert bytes(batch[0]) == b"a"
    assert bytes(batch[-1]) == b"bcd"
    assert [bytes(item) for item in batch[1:]] == [b"", b"bcd"]
    assert bytes(batch.data) == b"abcd"
    assert batch.offsets.tolist() == [0, 1, 1, 4]
    assert batch[0].readonly
    with pytest.raises(IndexError, match="batch of 3"):
        batch[3]


def test_pack_takes_any_bytes_like_object():
    items = [b"a", bytearray(b"bc"), memoryview(b"def"), struct.pack("<d", 1.0)]
    assert [bytes(item) for item in _core.unpack(_core.pack(items))] == [bytes(i) for i in items]


@given(st.binary(max_size=100), buffers, st.integers(0, 255), st.integers(0, 2**64 - 1))
def test_a_message_survives_encoding(body, items, kind, request_id):
    frames = _fallback.encode_message(
        kind, body, items, request_id=request_id, inline_max_nbytes=INLINE_MAX_NBYTES
    )
    assert both_decode(frames) == (kind, 0, request_id, body, items)


@given(st.binary(max_size=60), buffers, st.data())
def test_a_message_cut_at_any_byte_is_refused(body, items, data):
    frames = _fallback.encode_message(3, body, items, inline_max_nbytes=INLINE_MAX_NBYTES)
    index = data.draw(st.integers(0, len(frames) - 1))
    if not frames[index].nbytes:
        return
    keep = data.draw(st.integers(0, frames[index].nbytes - 1))
    frames[index] = frames[index][:keep]
    assert both_decode(frames)[0] is ProtocolError


@given(st.binary(max_size=60), buffers, st.data())
def test_a_message_with_any_changed_header_byte_is_refused_or_read_the_same_by_both(
    body, items, data
):
    frames = _fallback.encode_message(3, body, items, inline_max_nbytes=INLINE_MAX_NBYTES)
    head = bytearray(frames[0])
    position = data.draw(st.integers(0, len(head) - 1))
    head[position] ^= data.draw(st.integers(1, 255))
    both_decode([bytes(head), *frames[1:]])


@given(payloads, st.data())
def test_a_batch_cut_at_any_byte_is_refused(items, data):
    packed = _core.pack(items)
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    for unpack in (_core.unpack, _fallback.unpack):
        with pytest.raises(ProtocolError):
            unpack(cut)


@given(payloads, st.data())
def test_a_batch_with_any_changed_byte_is_refused_or_read_the_same_by_both(items, data):
    packed = bytearray(_core.pack(items))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= data.draw(st.integers(1, 255))
    compiled = outcome(lambda: [bytes(item) for item in _core.unpack(bytes(packed))])
    plain = outcome(lambda: [bytes(item) for item in _fallback.unpack(bytes(packed))])
    assert compiled == plain


@given(st.binary(max_size=200))
@example(b"")
@example(b"ZFST")
def test_arbitrary_bytes_are_refused_the_same_by_both(data):
    both_decode([data])
    compiled = outcome(lambda: [bytes(item) for item in _core.unpack(data)])
    plain = outcome(lambda: [bytes(item) for item in _fallback.unpack(data)])
    assert compiled == plain


def header(version=2, flags=0, n=0, body_nbytes=0, magic=b"ZFST"):
    return struct.pack("<4sBBHQIIQ", magic, version, 7, flags, 0, n, 0, body_nbytes)


@pytest.mark.parametrize("decode", [_core.decode_message, _fallback.decode_message])
def test_each_kind_of_bad_header_is_named(decode):
    with pytest.raises(ProtocolError, match="magic is b'HTTP'"):
        decode([header(magic=b"HTTP")])
    with pytest.raises(VersionMismatchError, match="wire version 9, this process speaks 2"):
        decode([header(version=9)])
    with pytest.raises(FrameTooLargeError, match="4294967295 buffers announced"):
        decode([header(n=2**32 - 1)])
    with pytest.raises(ProtocolError, match="a body of 18446744073709551615 bytes"):
        decode([header(body_nbytes=2**64 - 1)])
    with pytest.raises(ProtocolError, match="no frame"):
        decode([])
    with pytest.raises(ProtocolError, match="1 frames left over"):
        decode([header(), b"x"])
    with pytest.raises(ProtocolError, match="2 bytes left over"):
        decode([header() + b"xx"])
    with pytest.raises(ProtocolError, match="a batch where a message"):
        decode([_core.pack([b"a"])])


def test_inline_buffers_are_aligned_for_any_dtype():
    frames = _fallback.encode_message(1, b"odd", [b"x" * 7, b"y" * 16])
    misaligned = memoryview(b"_" + bytes(frames[0]))[1:]
    for buffer in _core.decode_message([misaligned]).buffers:
        assert _address(buffer) % 16 == 0


def _address(view):
    import numpy as np

    return np.frombuffer(view, np.uint8).ctypes.data
