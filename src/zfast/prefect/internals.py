"""The one place that touches what Prefect does not promise. Whatever is not as expected is "no".

Known to be right for Prefect 3.8. With another version every answer is the safe one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast
from uuid import UUID

import prefect

if TYPE_CHECKING:
    from types import FrameType

    from prefect.blocks.core import Block
    from prefect.serializers import Serializer

KNOWN_VERSION = "3.8."

_RECORDS = "prefect._internal.result_records"
_PERSIST = ("_persist_result_record", "_apersist_result_record")
_EXISTS = ("_exists", "_aexists")


def is_known() -> bool:
    """Say whether this Prefect is one whose insides this module was written for."""
    return prefect.__version__.startswith(KNOWN_VERSION)


class Write(NamedTuple):
    """A result on its way into a storage.

    Attributes:
        storage: The block that gets it.
        in_json: Whether it becomes a string of a JSON record, or is stored as the bytes it is.
    """

    storage: object
    in_json: bool


def current_write(serializer: Serializer[Any]) -> Write | None:
    """Say which storage gets the bytes that a serializer is being asked for, and how.

    For the `dumps` of a serializer, which must call this directly. The current run context does
    not tell: a transaction commits children that belong to other stores. The callers do::

        ResultStore._persist_result_record → ResultRecord[.serialize].serialize_result → dumps

    Any other caller may do anything with the bytes, compress them for one.

    Returns:
        The write, or None if that is not who is calling.
    """
    if not is_known():
        return None
    frame = sys._getframe(1).f_back
    if not _is(frame, _RECORDS, "serialize_result"):
        return None
    if getattr(frame.f_locals.get("self"), "serializer", None) is not serializer:
        return None
    frame = frame.f_back
    in_json = _is(frame, _RECORDS, "serialize")
    if in_json and frame is not None:
        frame = frame.f_back
    if not _is(frame, "prefect.results", *_PERSIST):
        return None
    return Write(getattr(frame.f_locals.get("self"), "result_storage", None), in_json)


def is_existence_check() -> bool:
    """Say whether the value that a serializer is being asked for is thrown away.

    For its `loads`, which must call this directly. Prefect reads whole records to learn whether
    they are there and when they expire: ``ResultStore._exists → ResultRecord.deserialize → loads``.
    """
    if not is_known():
        return False
    frame = sys._getframe(1).f_back
    return _is(frame, _RECORDS, "deserialize") and _is(frame.f_back, "prefect.results", *_EXISTS)


def _is(frame: FrameType | None, module: str, *functions: str) -> TypeGuard[FrameType]:
    return (
        frame is not None
        and frame.f_code.co_name in functions
        and frame.f_globals.get("__name__") == module
    )


def block_id(block: Block) -> UUID | None:
    """Return the id under which a block is saved in the API, or None."""
    return block._block_document_id


def save(block: Block, name: str) -> UUID:
    """Save a block in the API under a name, over what has that name, even from within a loop."""
    document_id: UUID = cast("Any", block).save(name, overwrite=True, _sync=True)
    return document_id


def mark_saved(block: Block, document_id: UUID, name: str) -> None:
    """Note on a block that it is saved in the API, as its own `save` does."""
    block._block_document_id = document_id
    block._block_document_name = name
    block._is_anonymous = False
