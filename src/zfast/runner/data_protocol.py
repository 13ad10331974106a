"""What two foremen say to each other: one asks for bytes, the other has them in shared memory.

Each question stands for itself, and whoever answers it remembers nothing of it. Its request id
stands in the answer's header too.
"""

from __future__ import annotations

from zfast.errors import ProtocolError
from zfast.runner.control import ControlMessage, MessageTable
from zfast.sharing.descriptor import Descriptor

#: The most that one question may ask for.
CHUNK_NBYTES = 1 << 20
#: Questions that a client has under way at one server; that one keeps twice as many answers for it.
WINDOW = 16


class Ask(ControlMessage, frozen=True):
    """Client → server: that part of a buffer, please.

    ``offset``: from the start of the buffer, in bytes.
    """

    descriptor: Descriptor
    offset: int
    nbytes: int

    def check(self) -> None:
        """Refuse what no client of ours asks.

        Raises:
            ProtocolError: It is no range of the buffer, or a larger one than may be asked for.
        """
        self.descriptor.check()
        if (
            not 0 < self.nbytes <= CHUNK_NBYTES
            or not 0 <= self.offset <= self.descriptor.nbytes - self.nbytes
        ):
            raise ProtocolError(
                f"{self.nbytes} bytes from {self.offset} on were asked of {self.descriptor}"
            )


class Piece(ControlMessage, frozen=True):
    """Server → client: buffer 0 is what was asked for."""


class Missing(ControlMessage, frozen=True):
    """Server → client: what was asked for is not here."""


DATA_MESSAGES = MessageTable(128, (Ask, Piece, Missing))
