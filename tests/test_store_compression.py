"""Compressed buffers: which are, how they are read, and what lies do."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from zfast.codec import Payload, decode, encode
from zfast.errors import ConfigError, ObjectCorruptError, StoreError
from zfast.store import FolderStore, compression, inspection
from zfast.store.compression import COMPRESS_MIN_NBYTES, LZ4, RAW, ZSTD, Codec, compress, decompress
from zfast.store.format import FORMAT_VERSION, HEADER_NBYTES, build, parse

CODECS: list[Codec] = ["zstd", "lz4"]
NUMBERS: dict[Codec, int] = {"zstd": ZSTD, "lz4": LZ4}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def store(tmp_path: Path, codec: Codec) -> FolderStore:
    return FolderStore(str(tmp_path / "store"), compression=codec)


def packed(codec: Codec, data: bytes) -> bytes:
    stored, number = compress(codec, memoryview(data))
    assert number == NUMBERS[codec]
    return bytes(stored)


def test_values_come_back_and_take_less(store: FolderStore) -> None:
    value = {
        "zeros": np.zeros(1_000_000),
        "noise": np.frombuffer(os.urandom(1_000_000), np.uint8),
        "few": np.arange(1000),
        "text": "x" * 100_000,
    }
    payload = encode(value)
    store.put("k", b"content", payload)
    stored = store.get("k")
    stored.verify()
    assert stored.version == 2
    assert stored.nbytes < payload.nbytes / 5
    assert {buffer.codec for buffer in stored.buffers} == {
        RAW,
        NUMBERS[store.compression or "zstd"],
    }
    assert stored.payload is not None
    back = decode(stored.payload, own=True)
    assert back.keys() == value.keys()
    for name in ("zeros", "noise", "few"):
        np.testing.assert_array_equal(back[name], value[name])
        back[name][:1] = 5  # private and writable, compressed or not
    store.get("k").verify()
    inspection.verify(store, "k")
    assert stored.content == b"content"


def test_what_does_not_shrink_is_stored_as_it_is_and_mapped(store: FolderStore) -> None:
    noise = os.urandom(1_000_000)
    small = bytes(COMPRESS_MIN_NBYTES - 1)
    store.put("k", b"", Payload(b"h", [memoryview(noise), memoryview(small)]))
    stored = store.get("k")
    assert stored.version == 1, "an older zfast can read it"
    assert stored.payload is not None
    assert stored.payload.buffers[0].obj is stored.content.obj, "a copy of the file"
    assert stored.payload.buffers == [noise, small]


def test_content_is_read_without_decompressing(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("k", b"content", Payload(b"h", [memoryview(bytes(1_000_000))]))
    monkeypatch.setattr(compression, "_unpacker", lambda *_: 1 / 0)
    assert store.get("k").content == b"content"


@given(st.binary(min_size=1, max_size=300), st.integers(COMPRESS_MIN_NBYTES, 600_000))
@settings(max_examples=60)
def test_any_bytes_come_back(pattern: bytes, nbytes: int) -> None:
    data = memoryview((pattern * (nbytes // len(pattern) + 1))[:nbytes])
    for codec in CODECS:
        stored, number = compress(codec, data)
        back = data if number == RAW else decompress(number, stored, nbytes, name="it")
        assert back == data


# --- damage and lies ---------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [-1, 1, 1000, -1000])
def test_a_length_that_lies_is_an_error(codec: Codec, lie: int) -> None:
    data = bytes(300_000)
    stored = memoryview(packed(codec, data))
    with pytest.raises(ObjectCorruptError, match=r"it cannot be read: a compressed buffer"):
        decompress(NUMBERS[codec], stored, len(data) + lie, name="it")


def test_a_cut_or_a_second_frame_is_an_error(codec: Codec) -> None:
    data = os.urandom(1000) * 300
    stored = packed(codec, data)
    for wrong in (stored[:-1], stored[: len(stored) // 2], b"", stored + b"\0", stored * 2):
        with pytest.raises(ObjectCorruptError):
            decompress(NUMBERS[codec], memoryview(wrong), len(data), name="it")


@given(st.data())
@settings(max_examples=300)
def test_any_damage_is_an_error_or_harmless(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(CODECS))
    whole = os.urandom(500) * 100
    stored = bytearray(packed(codec, whole))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = decompress(NUMBERS[codec], memoryview(stored), len(whole), name="it")
    except ObjectCorruptError:
        return
    assert len(back) == len(whole)


def with_entry(data: bytes, nbytes: int, codec: int) -> bytes:
    """An object whose first buffer's entry lies, with right checksums."""
    changed = bytearray(data)
    struct.pack_into("<QQ", changed, HEADER_NBYTES + 24, nbytes, codec)
    (start,) = struct.unpack_from("<Q", changed, HEADER_NBYTES)
    changed[56:64] = bytes(8)
    changed[56:64] = struct.pack("<Q", xxhash.xxh3_64_intdigest(changed[:start]))
    return bytes(changed)


def test_a_bomb_is_refused_without_its_memory(codec: Codec) -> None:
    payload = Payload(b"h", [memoryview(bytes(4_000_000))])
    data = b"".join(build(b"", payload, compress=lambda buffer: compress(codec, buffer)))
    number = NUMBERS[codec]
    claims = [(4_000_001, number), (1 << 62, number), (60_000_000, number), (4_000_000, 7)]
    tracemalloc.start()
    for nbytes, claimed in claims:
        with pytest.raises(ObjectCorruptError, match="bomb"):
            _ = parse(memoryview(with_entry(data, nbytes, claimed)), name="bomb").payload
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What is claimed is reserved, at most; only bytes that come are touched.
    assert peak < 100_000_000
    back = parse(memoryview(with_entry(data, 4_000_000, number)), name="it").payload
    assert back is not None
    assert back.buffers == payload.buffers


def test_more_than_the_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = packed("zstd", bytes(1_000_000))
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else real(name))
    with pytest.raises(StoreError, match=r"more than this machine's memory.*larger machine"):
        decompress(ZSTD, memoryview(stored), 1_000_000, name="it")


# --- what is missing, what is newer -------------------------------------------------------------


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no compression 'gzip'.*zstd, lz4"):
        FolderStore("anywhere", compression="gzip")  # type: ignore[arg-type]


def test_a_missing_library_is_named(store: FolderStore, codec: Codec) -> None:
    store.put("k", b"content", Payload(b"h", [memoryview(bytes(100_000))]))
    script = f"""
import sys
sys.modules[{compression._MODULES[codec]!r}] = None
from zfast.errors import ConfigError, StoreError
from zfast.store import FolderStore
try:
    FolderStore({store.basepath!r}, compression={codec!r})
except ConfigError as error:
    print(error)
stored = FolderStore({store.basepath!r}).get("k")
print(bytes(stored.content))
try:
    stored.payload
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    setting, content, reading = done.stdout.splitlines()
    assert content == "b'content'"
    for line in (setting, reading):
        assert codec in line
        assert "pip install 'zfast[compression]'" in line


def test_versions() -> None:
    plain = b"".join(build(b"c", Payload(b"h", [memoryview(b"x" * 100)])))
    assert plain[8] == 1
    assert FORMAT_VERSION == 2
    assert parse(memoryview(plain), name="it").version == 1
