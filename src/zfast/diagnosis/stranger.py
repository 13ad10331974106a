"""An endpoint as a stranger sees it: what it announces, and whether an unknown key gets in."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

from zfast.addresses import host_and_port, parse_endpoint
from zfast.diagnosis.finding import Finding, Level
from zfast.errors import ConfigError, HandshakeError
from zfast.security.client_security import ClientSecurity, find_server_key
from zfast.security.curve_keys import KeyPair, PublicKey

_CHECK = "endpoint"
#: How long an endpoint may take to say what it is.
PATIENCE_S = 2.0
_GREETING_NBYTES = 64
#: The beginning of a greeting of ZMTP 3.1: whoever listens says what mechanism it wants. To one
#: that goes on to name another, it would say nothing.
_GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01"


def check_endpoint(
    url: str, servers: Iterable[PublicKey], *, takes_tokens: bool = False
) -> Iterator[Finding]:
    """Connect to a tcp endpoint without a key, then with a key that nobody knows.

    Args:
        servers: Public keys that the server may have; without the right one no handshake gets so
            far that the unknown key counts.
        takes_tokens: The policy here has issuers: then an unknown key may come in, as a guest.

    Raises:
        ConfigError: It is no tcp endpoint.
    """
    host, port = parse_tcp(url)
    try:
        mechanism = announced_mechanism(host, port)
    except OSError as error:
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"{url} cannot be reached: {error.strerror or error}",
            hint="is the server running, and does a firewall let this host through?",
        )
        return
    if mechanism is None:
        yield Finding(
            _CHECK, Level.PROBLEM, f"{url} speaks no ZeroMQ (ZMTP 3)", hint="is it another port?"
        )
    elif mechanism != "CURVE":
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"{url} announces {mechanism}: whoever reaches it can read and speak",
            hint="give its server security=ServerSecurity.load(); 'zfast keys new server' makes "
            "the key",
        )
    else:
        yield _with_unknown_key(url, tuple(servers), takes_tokens)


def parse_tcp(url: str) -> tuple[str, int]:
    """Host, without brackets, and port of an endpoint that can be connected to.

    Raises:
        ConfigError: It is no tcp endpoint, or names no port.
    """
    endpoint = parse_endpoint(url, guarded=True)
    host, port = host_and_port(str(endpoint))
    if endpoint.scheme != "tcp" or port == "*":
        raise ConfigError(
            f"{url!r} cannot be tried by a stranger", hint="give the tcp://HOST:PORT of a server"
        )
    return host.strip("[]"), int(port)


def announced_mechanism(host: str, port: int, timeout_s: float = PATIENCE_S) -> str | None:
    """The security mechanism that a listener wants; None if it speaks no ZMTP 3.

    Raises:
        OSError: Nobody listens there.
    """
    with socket.create_connection((host, port), timeout=timeout_s) as stranger:
        received = b""
        try:
            stranger.sendall(_GREETING)
            while len(received) < _GREETING_NBYTES:
                some = stranger.recv(_GREETING_NBYTES - len(received))
                if not some:
                    return None
                received += some
        except OSError:  # it is silent, or has hung up
            return None
    if received[0] != 0xFF or received[9] != 0x7F or received[10] < 3:
        return None
    return received[12:32].rstrip(b"\0").decode("ascii", "backslashreplace")


def _with_unknown_key(url: str, servers: tuple[PublicKey, ...], takes_tokens: bool) -> Finding:
    if not servers:
        return Finding(
            _CHECK,
            Level.NOTE,
            f"{url} wants CURVE; no server key is trusted here to go further",
            hint="zfast keys trust server.pub",
        )
    try:
        met = find_server_key(
            url, ClientSecurity(KeyPair.generate(), servers), timeout_s=PATIENCE_S
        )
    except HandshakeError:
        return Finding(_CHECK, Level.OK, f"{url} proves its key, and refuses an unknown one")
    if met is None:
        return Finding(
            _CHECK,
            Level.NOTE,
            f"{url} wants CURVE and proves none of the keys that are trusted here",
            hint="compare with 'zfast keys show server' there; after a rotation, trust the new key",
        )
    if takes_tokens:
        return Finding(
            _CHECK,
            Level.NOTE,
            f"{url} lets an unknown key in: right if it takes tokens, as the policy here does",
        )
    return Finding(
        _CHECK,
        Level.PROBLEM,
        f"{url} lets an unknown key in",
        hint="is it zfast's, and of this version? it takes tokens, or guards nothing",
    )
