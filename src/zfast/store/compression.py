"""Compressed buffers: which are worth it, and how they are read without trusting what they say."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any, Literal

from zfast.errors import ConfigError, ObjectCorruptError, StoreError

Codec = Literal["zstd", "lz4"]

RAW, ZSTD, LZ4 = 0, 1, 2
#: Bytes that one stored byte can become, at most, by the codec's own format.
MAX_EXPANSION = {RAW: 1, ZSTD: 128 * 1024 // 4, LZ4: 255}
#: A smaller buffer is stored as it is: its read would cost more than its bytes.
COMPRESS_MIN_NBYTES = 16 * 1024
#: What must be left of a buffer at most, lest it is stored as it is and can be mapped.
MAX_SHARE = 0.9
ZSTD_LEVEL = 1

_SAMPLES = 4
_SAMPLE_NBYTES = 16 * 1024
_PIECE_NBYTES = 256 * 1024
_MODULES = {
    "zstd": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
    "lz4": "lz4.frame",
}
CODEC_NAMES: dict[int, Codec] = {ZSTD: "zstd", LZ4: "lz4"}


def check_codec(codec: str) -> None:
    """Check that a codec exists and that its library is installed.

    Raises:
        ConfigError: It is not.
    """
    if codec not in _MODULES:
        raise ConfigError(
            f"there is no compression {codec!r}", hint=f"choose one of {', '.join(_MODULES)}"
        )
    try:
        found = importlib.util.find_spec(_MODULES[codec])
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            f"compression with {codec} needs the package {_MODULES[codec]}",
            hint="pip install 'zfast[compression]'",
        )


def compress(codec: Codec, buffer: memoryview) -> tuple[memoryview, int]:
    """Compress a buffer if that pays; with its codec, or the buffer itself and `RAW`.

    Samples tell what will not shrink, such as noise and what is compressed already, before the
    whole is tried. The result is in new memory, ``(stored_nbytes,)`` uint8.
    """
    if buffer.nbytes < COMPRESS_MIN_NBYTES:
        return buffer, RAW
    pack = _packer(codec)
    if buffer.nbytes > 2 * _SAMPLES * _SAMPLE_NBYTES:
        step = buffer.nbytes // _SAMPLES
        sample = b"".join(
            buffer[start : start + _SAMPLE_NBYTES] for start in range(0, _SAMPLES * step, step)
        )
        if len(pack(sample)) > MAX_SHARE * len(sample):
            return buffer, RAW
    packed = memoryview(pack(buffer))
    if packed.nbytes > MAX_SHARE * buffer.nbytes:
        return buffer, RAW
    return packed, ZSTD if codec == "zstd" else LZ4


def decompress(codec: int, stored: memoryview, nbytes: int, *, name: str) -> memoryview:
    """Decompress a buffer into new, writable memory of exactly its length.

    Memory is touched as bytes come, so that a length that lies costs none.

    Args:
        codec: `ZSTD` or `LZ4`.
        stored: The compressed bytes.
        nbytes: Bytes of the buffer, as its entry in the file says.
        name: The object, for messages.

    Raises:
        ObjectCorruptError: They are damaged, or more or fewer than `nbytes`.
        StoreError: The codec's library is missing, or there is not enough memory.
    """
    unpacker, broken = _unpacker(codec, name)
    if nbytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise StoreError(
            f"{name} cannot be read: a buffer says that it has {nbytes} bytes, more than this "
            "machine's memory",
            hint="read it on a larger machine; if it cannot be that large, delete it",
        )
    try:
        data = bytearray(nbytes)
    except MemoryError as error:
        raise StoreError(
            f"{name} cannot be read: there is no memory for a buffer of {nbytes} bytes",
            hint="free some memory, or raise the process's limit",
        ) from error
    done = taken = 0
    view = memoryview(data)
    try:
        while not unpacker.eof:
            if unpacker.needs_input:
                piece = stored[taken : taken + _PIECE_NBYTES]
                if not piece:
                    raise _lies(name, "ends too early")
                taken += piece.nbytes
            else:
                piece = memoryview(b"")
            # One byte more than is left tells that there are too many.
            part = unpacker.decompress(piece, min(_PIECE_NBYTES, nbytes - done + 1))
            if len(part) > nbytes - done:
                raise _lies(name, f"has more than the {nbytes} bytes that it should")
            view[done : done + len(part)] = part
            done += len(part)
    except broken as error:
        raise _lies(name, f"is damaged ({error})") from error
    if done != nbytes or taken != stored.nbytes or unpacker.unused_data:
        raise _lies(name, f"does not have the {nbytes} bytes that it should")
    return view


def _lies(name: str, what: str) -> ObjectCorruptError:
    return ObjectCorruptError(
        f"{name} cannot be read: a compressed buffer {what}",
        hint="delete it, its task computes it anew",
    )


def _packer(codec: Codec) -> Any:
    library = importlib.import_module(_MODULES[codec])
    if codec == "lz4":
        return library.compress
    return lambda data: library.compress(data, level=ZSTD_LEVEL)


def _unpacker(codec: int, name: str) -> tuple[Any, tuple[type[Exception], ...]]:
    try:
        library = importlib.import_module(_MODULES[CODEC_NAMES[codec]])
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{name} cannot be read: {CODEC_NAMES[codec]}, which compressed it, is not installed",
            hint="pip install 'zfast[compression]'",
        ) from error
    if codec == LZ4:
        return library.LZ4FrameDecompressor(), (RuntimeError, EOFError)
    return library.ZstdDecompressor(), (library.ZstdError, EOFError)
