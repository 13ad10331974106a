"""What Prefect says of a result beside it, read without Prefect.

Content that Prefect writes begins with the metadata, ``{"metadata":{…},"result":…}``; a result
whose metadata are kept elsewhere says nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone

#: Metadata are a few hundred bytes. What is longer is not looked at.
METADATA_MAX_NBYTES = 16 * 1024
_START = b'{"metadata":'


@dataclass(frozen=True)
class Record:
    """Metadata of a result.

    Attributes:
        expires_s: When Prefect takes the result for gone, seconds since 1970; None: never.
        serializer: Type of the serializer that wrote it.
        storage_key: The key, or the absolute path, that Prefect knows it by.
    """

    expires_s: float | None = None
    serializer: str | None = None
    storage_key: str | None = None


def read_record(content: bytes | memoryview) -> Record | None:
    """Read the metadata at the beginning of content; None if there are none.

    Args:
        content: The content, or its first `METADATA_MAX_NBYTES`.
    """
    start = bytes(content[:METADATA_MAX_NBYTES])
    if not start.startswith(_START):
        return None
    try:
        text = start[len(_START) :].decode(errors="replace")
        metadata, _ = json.JSONDecoder().raw_decode(text)
        expiration = metadata.get("expiration")
        serializer = metadata.get("serializer") or {}
        return Record(
            _seconds(expiration) if expiration else None,
            serializer.get("type") if isinstance(serializer, dict) else str(serializer),
            metadata.get("storage_key"),
        )
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError):
        return None


def _seconds(text: str) -> float:
    # Python 3.10 does not read the Z.
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
