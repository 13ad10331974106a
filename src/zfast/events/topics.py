"""Topics: ``environment/kind/flow/state/``, each part escaped, so that prefixes end between parts.

::

    prod/task-run/etl/Completed/     what is published
    prod/task-run/                   a prefix: matches that, and nothing of prod/task-runs/
    (empty)                          matches everything

A prefix's **level** is the number of its parts, from 0 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

from zfast.errors import ConfigError

#: Parts of a whole topic.
PARTS = 4
#: Prefixes that begin with this are the protocol's own; no environment's name can.
RESERVED = b"~"
#: Longest part, in characters as written; what is longer is cut there.
MAX_PART = 200


def make_topic(parts: Sequence[str]) -> bytes:
    """The topic, or the prefix, of so many parts. Empty parts are written ``%``.

    Raises:
        ConfigError: More than four parts.
    """
    if len(parts) > PARTS:
        raise ConfigError(
            f"a topic has at most {PARTS} parts, not {'/'.join(parts)!r}",
            hint="environment/kind/flow/state",
        )
    return b"".join(_escape(part) + b"/" for part in parts)


def split_topic(topic: bytes) -> list[str]:
    """The parts of a topic or prefix, unescaped."""
    return ["" if part == b"%" else unquote(part.decode()) for part in topic.split(b"/")[:-1]]


def parse_pattern(text: str) -> bytes:
    """The prefix that a user means by ``prod/task-run`` or ``prod/task-run/``; ``""`` is all.

    Characters other than ``/`` stand for themselves; write ``%2F`` for a slash in a name.

    Raises:
        ConfigError: A part is empty, or there are more than four.
    """
    parts = text.removesuffix("/").split("/") if text else []
    if "" in parts:
        raise ConfigError(
            f"the topic {text!r} has an empty part", hint="such as prod/task-run/my-flow"
        )
    return make_topic([part.replace("%2F", "/") for part in parts])


def prefixes_of(topic: bytes) -> tuple[bytes, ...]:
    """All prefixes of a whole topic, by level: five of them.

    Raises:
        ValueError: It is not a whole topic.
    """
    ends = [index + 1 for index, byte in enumerate(topic) if byte == 0x2F]
    if len(ends) != PARTS or ends[-1] != len(topic):
        raise ValueError(f"not a topic: {topic!r}")
    return (b"", *(topic[:end] for end in ends))


def level_of(prefix: bytes) -> int:
    """How many parts a prefix has."""
    return prefix.count(b"/")


def without_overlaps(prefixes: Iterable[bytes]) -> list[bytes]:
    """The fewest prefixes that match the same, sorted: each topic is then matched by one."""
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)):
        if not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    return kept


def _escape(part: str) -> bytes:
    # `quote` leaves "~" alone, which is the protocol's own here.
    escaped = quote(part, safe="", errors="replace").replace("~", "%7E")
    if len(escaped) > MAX_PART:
        escaped = escaped[:MAX_PART]
        broken = escaped.rfind("%", MAX_PART - 2)
        escaped = escaped if broken < 0 else escaped[:broken]
    return escaped.encode() or b"%"
