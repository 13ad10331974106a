"""The messages of ZAP 1.0 (RFC 27): what libzmq asks its handler, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass

from zmq.utils import z85

from zfast.errors import ProtocolError

#: Where libzmq looks for the handler in a context.
ENDPOINT = "inproc://zeromq.zap.01"
#: An address that no peer can have, so that a self-test is no stranger in the records.
SELF_TEST_ADDRESS = "self-test"
_VERSION = b"1.0"
_CURVE_KEY_NBYTES = 32


@dataclass(frozen=True, slots=True)
class Request:
    """One handshake that waits for a verdict.

    Attributes:
        request_id: To repeat in the reply.
        domain: Of the socket that the peer connected to.
        address: The peer's, without its port.
        mechanism: ``NULL``, ``PLAIN``, ``CURVE``, …
        key: The peer's public key in Z85; empty unless the mechanism is CURVE.
    """

    request_id: bytes
    domain: str
    address: str
    mechanism: str
    key: str


def parse_request(frames: list[bytes]) -> Request:
    """Read the frames after the envelope.

    Raises:
        ProtocolError: They are no request.
    """
    if len(frames) < 6 or frames[0] != _VERSION:
        raise ProtocolError(f"a ZAP request of {len(frames)} frames, version {frames[:1]!r}")
    _, request_id, domain, address, _, mechanism, *credentials = frames
    key = ""
    if mechanism == b"CURVE":
        if len(credentials) != 1 or len(credentials[0]) != _CURVE_KEY_NBYTES:
            raise ProtocolError("a ZAP request with CURVE and without a key")
        key = z85.encode(credentials[0]).decode()
    return Request(request_id, _text(domain), _text(address), _text(mechanism), key)


def admit(request: Request) -> list[bytes]:
    """The reply that lets the peer in; its key becomes the ``User-Id`` of all its messages."""
    return [_VERSION, request.request_id, b"200", b"OK", request.key.encode(), b""]


def refuse(request_id: bytes, *, for_now: bool = False) -> list[bytes]:
    """The reply that does not; the peer learns no reason.

    Args:
        for_now: It may try again, and libzmq does. Else its socket gives up for good.
    """
    return [_VERSION, request_id, b"300" if for_now else b"400", b"Refused", b"", b""]


def _text(frame: bytes) -> str:
    return frame.decode("utf-8", "backslashreplace")
