"""Which key speaks under which routing id, on a ROUTER that knows its peers by them."""

from __future__ import annotations

from zfast.errors import AccessDeniedError
from zfast.security.audit import record

#: Ids that are remembered; the oldest make room. One in use is libzmq's to keep from others.
MAX_IDS = 100_000


class RoutingIds:
    """Binds each routing id to the key that used it first. Threads: the socket's.

    libzmq ignores a second connection under a routing id in use; once the first has gone, the id is
    free for anyone. Here it is not, until the owner says so.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, str] = {}

    def check(self, routing_id: bytes, user_id: str) -> None:
        """A message came under ``routing_id`` from the key ``user_id``.

        Raises:
            AccessDeniedError: The id is another key's.
        """
        if len(self._owners) > MAX_IDS:
            del self._owners[next(iter(self._owners))]
        if self._owners.setdefault(routing_id, user_id) != user_id:
            record("denied", reason="routing id of another key")
            raise AccessDeniedError(f"routing id {routing_id!r} belongs to another key")

    def forget(self, routing_id: bytes) -> None:
        """Let another key have it: the peer has said goodbye, or was given up."""
        self._owners.pop(routing_id, None)
