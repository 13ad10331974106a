"""How a link behaves, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from zfast.errors import ConfigError
from zfast.security.client_security import ClientSecurity
from zfast.security.server_security import ServerSecurity
from zfast.transport.streams import CHUNK_NBYTES, INITIAL_CREDIT

#: Messages queued for a peer before a sender waits, and received before a peer has to wait.
DEFAULT_HWM = 1000
#: What may be under way from one peer, in bytes.
DEFAULT_WINDOW_NBYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a link behaves; see ``Channel.bind``."""

    hwm: int = DEFAULT_HWM
    window_nbytes: int = DEFAULT_WINDOW_NBYTES
    memory_nbytes: int = 1 << 62
    checksum: bool = False
    insecure: bool = False
    security: ServerSecurity | ClientSecurity | None = None

    def __post_init__(self) -> None:
        if self.insecure and self.security is not None:
            raise ConfigError("give security= or insecure=True, not both")
        if not isinstance(self.hwm, int) or self.hwm < 1:
            raise ConfigError(f"hwm must be a whole number of messages from 1 on, not {self.hwm!r}")
        if not isinstance(self.window_nbytes, int) or self.window_nbytes < INITIAL_CREDIT:
            raise ConfigError(
                f"window_nbytes must be a whole number from {INITIAL_CREDIT} on, "
                f"not {self.window_nbytes!r}"
            )
        if not isinstance(self.memory_nbytes, int) or self.memory_nbytes < CHUNK_NBYTES:
            raise ConfigError(
                f"memory_nbytes must be a whole number from {CHUNK_NBYTES} on, "
                f"not {self.memory_nbytes!r}"
            )
