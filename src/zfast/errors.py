"""The one tree of errors that zfast raises.

::

    ZfastError(message, detail=, hint=)
    ├── ConfigError            (ValueError)   a bad argument, address or setting
    ├── ProtocolError                         a peer sent bytes that are not ours
    │   ├── VersionMismatchError              a peer speaks another protocol version
    │   └── FrameTooLargeError                a length is past its limit
    ├── TransportError         (OSError)      a socket failed; ``errno`` is kept
    │   ├── SendTimeoutError   (TimeoutError) no peer took the message in time
    │   ├── RecvTimeoutError   (TimeoutError) no message came in time
    │   ├── ChannelClosedError                the channel is closed, or closed with data unread
    │   └── HandshakeError                    the other side refused our key, or is not who we trust
    ├── AccessDeniedError      (PermissionError) a key or token does not allow what was asked
    │   └── TokenError                        a token was refused
    ├── CodecError                            a value cannot be encoded or decoded
    ├── StoreError             (OSError)      the result store's folder failed; ``errno`` is kept
    │   ├── KeyNotFoundError   (KeyError)     no object under that key
    │   ├── ObjectCorruptError                an object's header or checksum is wrong
    │   │   └── UnknownObjectError            a file that is no object, or a newer zfast's
    │   └── TicketError                       a ticket whose payload was never committed
    ├── LockError              (ValueError)   a lock that is not held, or cannot be had
    ├── ArenaError                            shared memory cannot be had, found or mapped
    │   └── ArenaFullError     (MemoryError)  no room: use the heap instead
    └── WorkerError                           a worker process failed
        ├── WorkerStartError                  it could not be started
        ├── WorkerDiedError                   it died while it ran a task
        └── ResultLostError                   a result went with the host it lay on
"""

from __future__ import annotations


class ZfastError(Exception):
    """Base of every error zfast raises.

    Args:
        message: What happened, to what.
        detail: More about the cause, for a log.
        hint: What to do about it.
    """

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.detail:
            parts.append(self.detail)
        if self.hint:
            parts.append(self.hint)
        return " – ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not pickle by themselves.
        state = dict(self.__dict__)
        if isinstance(self, OSError):
            state["errno"] = self.errno  # lies beside the dictionary
        return _rebuild, (type(self), self.args, state)


def _rebuild(
    cls: type[ZfastError], args: tuple[object, ...], state: dict[str, object]
) -> ZfastError:
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ConfigError(ZfastError, ValueError):
    """A bad argument, address or setting: the caller's to mend."""


class ProtocolError(ZfastError):
    """A peer sent bytes that are not a zfast message.

    Attributes:
        frame_index: Which frame of the message is wrong, from 0.
        offset: Where in that frame, in bytes.
        routing_id: The peer that sent it, when it came over a ROUTER; else None.
    """

    routing_id: bytes | None = None

    def __init__(
        self,
        message: str,
        *,
        frame_index: int = 0,
        offset: int = 0,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.frame_index = frame_index
        self.offset = offset


class VersionMismatchError(ProtocolError):
    """A peer speaks another version of the wire protocol."""


class FrameTooLargeError(ProtocolError):
    """A length in a header is past its limit."""


class _SystemError(ZfastError, OSError):
    """An error that the system, or libzmq, has a number for."""

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.errno = errno


class TransportError(_SystemError):
    """A socket operation failed. ``errno`` is libzmq's, or None."""


class SendTimeoutError(TransportError, TimeoutError):
    """No peer took the message in time."""


class RecvTimeoutError(TransportError, TimeoutError):
    """No message came in time."""


class ChannelClosedError(TransportError):
    """The channel is closed, or was closed with messages unread."""


class HandshakeError(TransportError):
    """The other side refused our key, or could not prove that it has the key we trust."""


class AccessDeniedError(_SystemError, PermissionError):
    """A peer's key or token does not allow what it asked for."""


class TokenError(AccessDeniedError):
    """A bearer token was refused; the message says why and never holds the token.

    Attributes:
        for_now: It may be taken in a moment: its issuer did not answer or was not asked
            for a new key yet, or there was no room.
    """

    for_now: bool = False


class CodecError(ZfastError):
    """A value cannot be encoded, or bytes cannot be decoded to a value."""


class StoreError(_SystemError):
    """The result store's folder could not be read or written. ``errno`` is the system's."""


class KeyNotFoundError(StoreError, KeyError):
    """No object is stored under that key."""


class ObjectCorruptError(StoreError):
    """A stored object's header, length or checksum is wrong."""


class UnknownObjectError(ObjectCorruptError):
    """A file does not begin as an object does, or has a format version of another zfast."""


class TicketError(StoreError):
    """A ticket names a payload that was never committed to a store."""


class LockError(ZfastError, ValueError):
    """A lock that the holder does not hold, or a place that can have no locks."""


class ArenaError(ZfastError):
    """Shared memory cannot be had, found or mapped."""


class ArenaFullError(ArenaError, MemoryError):
    """The arena has no room; memory of the process's own will do, at the price of a copy."""


class ArenaOnDiskWarning(UserWarning):
    """Neither memfd nor shared memory can be had, so the arena lies in files on a disk."""


class WorkerError(ZfastError):
    """A worker process failed."""


class WorkerStartError(WorkerError):
    """A worker process could not be started."""


class WorkerDiedError(WorkerError):
    """A worker process died while it ran a task."""


class ResultLostError(WorkerError):
    """A result lay on a host that was lost; the message names the host."""
