"""What happened at the door: one record and one count for each event, never a secret."""

from __future__ import annotations

import logging
import threading
from collections import Counter

logger = logging.getLogger("zfast.security")

_lock = threading.Lock()
_counts: Counter[tuple[str, str]] = Counter()


def record(event: str, *, level: int = logging.DEBUG, reason: str = "", **fields: object) -> None:
    """Log one event and count it.

    The log record's attribute ``zfast`` holds the fields as a dictionary.

    Args:
        event: Such as ``admitted`` or ``refused``; counted together with ``reason``.
        level: INFO for what an operator did, DEBUG for what peers do.
        reason: One of a few fixed phrases: it is a label of the metric.
        fields: Mechanism, address, key (its fingerprint), subject, role, environment, detail.
    """
    with _lock:
        _counts[event, reason] += 1
    if logger.isEnabledFor(level):
        told = {"event": event, "reason": reason, **fields}
        told = {name: value for name, value in told.items() if value not in ("", None)}
        # Values from peers are shown by repr, so that no line break forges a record.
        text = " ".join(f"{name}={value!r}" for name, value in told.items() if name != "event")
        logger.log(level, "%s %s", event, text, extra={"zfast": told})


def counters() -> dict[tuple[str, str], int]:
    """How often each event happened for each reason, since the process began. Threads: any."""
    with _lock:
        return dict(_counts)
