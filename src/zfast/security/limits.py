"""What a stranger may cost before it has proved who it is, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from zfast.errors import ConfigError

#: libzmq's own handshake does not fit into less (libzmq#4436).
MIN_FRAME_NBYTES = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one guarded socket; docs/security.md says how the defaults were measured.

    Attributes:
        frame_nbytes: The longest frame, before and after the handshake. libzmq allocates it when
            it has read the length, so a stranger may cost this much.
        handshake_ms: A handshake that is not done by then is cut.
        half_open: Connections whose handshake is not done; one more, and the oldest is cut.
        backlog: Connections that the kernel holds until they are accepted.
        guests: Peers with an unknown key that are about to present a token.
        guest_ms: How long each has for that.
        guest_nbytes: How much each may send besides its token.
        token_nbytes: The longest token that is looked at.
        heartbeat_ms: How often libzmq looks whether a peer is there; three misses, and it is gone.
    """

    frame_nbytes: int = 4 << 20
    handshake_ms: int = 3000
    half_open: int = 128
    backlog: int = 1024
    guests: int = 64
    guest_ms: int = 5000
    guest_nbytes: int = 64 << 10
    token_nbytes: int = 16 << 10
    heartbeat_ms: int = 5000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = MIN_FRAME_NBYTES if field.name == "frame_nbytes" else 1
            if not isinstance(value, int) or not least <= value < 1 << 31:
                raise ConfigError(
                    f"{field.name} must be a whole number from {least} to 2**31 - 1, not {value!r}"
                )
