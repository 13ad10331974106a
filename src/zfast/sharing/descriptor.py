"""Descriptors: what travels in place of a buffer that lies in shared memory."""

from __future__ import annotations

import msgspec

from zfast.errors import ProtocolError

SEGMENT_ID_NBYTES = 16
#: No file is larger: what lies beyond is a forgery.
OFFSET_LIMIT = 1 << 62


class Descriptor(msgspec.Struct, frozen=True, array_like=True):
    """Where one buffer lies.

    Attributes:
        segment_id: 16 random bytes; who does not know them cannot name the segment.
        generation: Of the publication: its owner gives out each number once, ever larger.
        offset, nbytes: The buffer, in bytes from the start of the segment.
    """

    segment_id: bytes
    generation: int
    offset: int
    nbytes: int

    @property
    def key(self) -> tuple[bytes, int]:
        """What leases are counted by."""
        return self.segment_id, self.generation

    def check(self) -> None:
        """Refuse what no process of ours can have made.

        Raises:
            ProtocolError: A field is out of its range.
        """
        if (
            len(self.segment_id) != SEGMENT_ID_NBYTES
            or self.generation < 1
            or not 0 <= self.offset < OFFSET_LIMIT
            or not 0 < self.nbytes < OFFSET_LIMIT
        ):
            raise ProtocolError(f"a malformed descriptor: {self}")

    def within(self, other: Descriptor) -> bool:
        """Whether this buffer is part of that publication."""
        return (
            self.key == other.key
            and other.offset <= self.offset
            and self.offset + self.nbytes <= other.offset + other.nbytes
        )

    def __str__(self) -> str:
        # Not the whole id: whoever reads a log is not to be able to name the segment.
        return (
            f"segment {self.segment_id[:3].hex()}… generation {self.generation}, "
            f"bytes {self.offset} to {self.offset + self.nbytes}"
        )
