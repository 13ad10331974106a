"""Tickets: the few ASCII bytes that stand for a payload on its way from serializer to storage.

Prefect hands a result to the storage as text inside a JSON record. So `dumps` stages the payload
here, in memory and uncopied, and returns a ticket; the storage that is given the ticket takes the
payload and stores both under one key. Reading goes the other way with a *located* ticket, which
says in which file the payload is::

    zf1:<32 hex digits>                          staged, or in the object beside it
    zf1:<32 hex digits>@<percent-encoded path>   in that file
"""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass
from urllib.parse import quote, unquote

from zfast.codec import Payload
from zfast.store.format import TOKEN_NBYTES

#: A payload that no storage took for so long is dropped when the next one is staged.
STAGED_MAX_AGE_S = 60.0
# Content with a ticket is one, or a record with one and a path. Longer content is not parsed.
_MAX_CONTENT_NBYTES = 32 * 1024
_PREFIX = b"zf1:"
_PATTERN = re.compile(rb"zf1:([0-9a-f]{32})(?:@([!-~]+))?")

# Each operation on it is one step under the GIL, so there is no lock for a fork to inherit.
_staged: dict[bytes, tuple[float, Payload]] = {}


@dataclass(frozen=True)
class Ticket:
    """A token and, when located, the absolute path of the object that holds the payload."""

    token: bytes
    path: str | None = None

    def __bytes__(self) -> bytes:
        """Write the ticket as ASCII that stands in JSON as it is."""
        bare = _PREFIX + self.token.hex().encode()
        return bare if self.path is None else bare + b"@" + quote(self.path).encode()


def parse(blob: bytes) -> Ticket | None:
    """Read a ticket; None if the bytes are not exactly one."""
    match = _PATTERN.fullmatch(blob)
    if match is None:
        return None
    token, path = match.groups()
    return Ticket(bytes.fromhex(token.decode()), unquote(path.decode()) if path else None)


def find(content: bytes | memoryview) -> Ticket | None:
    """Find the ticket in what Prefect writes: a bare result, or a record whose result it is."""
    if len(content) > _MAX_CONTENT_NBYTES:
        return None
    content = bytes(content)
    if not content.startswith(b"{") or _PREFIX not in content:
        return parse(content)
    try:
        result = json.loads(content).get("result")
    except ValueError:
        return None
    return parse(result.encode()) if isinstance(result, str) else None


def stage(payload: Payload) -> Ticket:
    """Keep a payload until a storage takes it, for `STAGED_MAX_AGE_S` at least."""
    now = time.monotonic()
    for token, (since, _) in list(_staged.items()):
        if now - since > STAGED_MAX_AGE_S:
            _staged.pop(token, None)
    ticket = Ticket(secrets.token_bytes(TOKEN_NBYTES))
    _staged[ticket.token] = (now, payload)
    return ticket


def take(ticket: Ticket) -> Payload | None:
    """Hand a staged payload over, once; None if it is not staged in this process."""
    _, payload = _staged.pop(ticket.token, (0.0, None))
    return payload
