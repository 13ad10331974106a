"""Values to a small header and a list of buffers, and back.

The header is a pickle protocol 5 stream. The buffers are the memory of arrays, columns and
tables, lent and not copied. What pickle cannot do (functions and classes of ``__main__``,
lambdas, closures) goes by value with cloudpickle. Libraries are known by their loaded modules:
importing this one imports none of pandas, polars and pyarrow.

Decoding a header runs code that its sender chose. Decode only what a trusted peer sent.

What stays in the header, copied: Python objects and text, ``bytes`` inside other values, arrays
of objects or of ``StringDType``, polars ``Object`` columns, and every buffer below
``IN_BAND_MAX_NBYTES``.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zfast.codec._culprit import describe_failure, type_name
from zfast.codec._numpy import address_of, borrow
from zfast.codec._pickler import (
    IN_BAND_MAX_NBYTES,
    OutOfBand,
    Pickler,
    ReferencePickler,
    Unpickler,
)
from zfast.errors import CodecError, ZfastError

__all__ = ["IN_BAND_MAX_NBYTES", "Payload", "address_of", "decode", "decode_header", "encode"]

_PROTOCOL_5 = b"\x80\x05"


@dataclass(frozen=True, slots=True)
class Payload:
    """An encoded value.

    Attributes:
        header: How to rebuild the value, a pickle protocol 5 stream.
        buffers: Its memory: read-only views of bytes, ``(nbytes,)`` each, that keep the value's
            memory alive. They show later writes to the value: send or copy them first.
    """

    header: bytes
    buffers: list[memoryview] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the header and the buffers together."""
        return len(self.header) + sum(buffer.nbytes for buffer in self.buffers)


def encode(
    value: object, *, persistent_id: Callable[[object], object | None] | None = None
) -> Payload:
    """Encode any value. Memory is lent, not copied, unless it has gaps. Any thread may call.

    Args:
        value: What to encode. It must not change until the payload was sent.
        persistent_id: Pickle's hook: asked about every object in the value, it returns something
            picklable to send instead, or None.

    Raises:
        CodecError: Something in the value cannot be pickled; the message says what and where.
    """
    try:
        return _encode(value, persistent_id)
    except (ZfastError, MemoryError):
        raise
    except Exception as error:

        def fails(part: object) -> bool:
            try:
                _encode(part, persistent_id)
            except Exception:
                return True
            return False

        message, hint = describe_failure(value, error, fails)
        raise CodecError(message, hint=hint) from error


def _encode(value: object, persistent_id: Callable[[object], object | None] | None) -> Payload:
    file = io.BytesIO()
    buffers: list[memoryview] = []
    if persistent_id is not None:
        ReferencePickler(file, buffers, persistent_id).dump(value)
    elif type(value) in (bytes, bytearray):
        Pickler(file, buffers).dump(OutOfBand(value))  # type: ignore[arg-type]
    else:
        Pickler(file, buffers).dump(value)
    return Payload(file.getvalue(), buffers)


def decode(
    payload: Payload,
    *,
    copy: bool = False,
    own: bool = False,
    persistent_load: Callable[[object], object] | None = None,
) -> Any:
    """Rebuild a value. Runs code that the sender chose. Any thread may call.

    Args:
        payload: Its buffers may lie at any address; one that is not a multiple of 8 is copied.
            They must not change while the value lives; the value keeps them alive.
        copy: Give NumPy arrays private, writable memory. Without it they are read-only and
            borrow the buffers. DataFrames and Series are writable either way: borrowed ones
            copy what is written to first.
        own: The buffers are writable and nobody else's: arrays take them over, writable and
            without a copy. They must be aligned.
        persistent_load: Pickle's hook: turns what ``persistent_id`` sent back into an object.

    Raises:
        CodecError: The payload is damaged, or needs a module or a name that is missing here.
            Errors of ``persistent_load`` that are zfast's own pass as they are.
    """
    try:
        header = payload.header
        if header[:2] != _PROTOCOL_5:
            raise pickle.UnpicklingError("the header is not a pickle protocol 5 stream")
        buffers = iter(
            payload.buffers if own else [borrow(buffer, copy=copy) for buffer in payload.buffers]
        )
        value: Any
        if copy or own or persistent_load is not None:
            unpickler = Unpickler(
                header, buffers, copy=copy or own, persistent_load=persistent_load
            )
            value = unpickler.load()
        else:
            value = pickle.loads(header, buffers=buffers)
        left = sum(1 for _ in buffers)
        if left:
            raise pickle.UnpicklingError(f"{left} more buffers came than the header uses")
    except (ZfastError, MemoryError):
        raise
    except Exception as error:
        raise _decode_failure(error, payload.header, len(payload.buffers)) from error
    return value


def decode_header(header: bytes) -> Any:
    """Rebuild a value that has no buffers; as ``decode``."""
    try:
        if header[:2] != _PROTOCOL_5:
            raise pickle.UnpicklingError("the header is not a pickle protocol 5 stream")
        return pickle.loads(header)
    except (ZfastError, MemoryError):
        raise
    except Exception as error:
        raise _decode_failure(error, header, 0) from error


def _decode_failure(error: Exception, header: bytes, n_buffers: int) -> CodecError:
    if isinstance(error, ImportError):
        return CodecError(
            f"cannot decode the value: {error}",
            hint="install the module here, in the version that the sender has",
        )
    if isinstance(error, AttributeError):
        return CodecError(
            f"cannot decode the value: {error}",
            hint="run the same version of the code on both sides",
        )
    return CodecError(
        f"cannot decode the value: {type_name(error)}: {error}",
        detail=f"header of {len(header)} bytes, {n_buffers} buffers",
        hint="the payload was damaged or is not one of zfast's",
    )
