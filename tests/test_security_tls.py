"""Where policy demands TLS: a channel through stunnel, CURVE inside."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from foremen import free_port
from zfast import Channel
from zfast.errors import HandshakeError
from zfast.security.client_security import ClientSecurity
from zfast.security.curve_keys import KeyPair
from zfast.security.roles import Role
from zfast.security.server_security import ServerSecurity

STUNNEL = shutil.which("stunnel4") or shutil.which("stunnel")
OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(
    not (STUNNEL and OPENSSL), reason="TLS is tested with stunnel and openssl, one is missing"
)

SERVER, CLIENT, STRANGER = (KeyPair.generate(name) for name in ("server", "client", "stranger"))


@contextmanager
def stunnel(folder: Path, name: str, service: str) -> Iterator[int]:
    """Run one end; the port that it accepts on."""
    port = free_port()
    config = folder / f"{name}.conf"
    config.write_text(
        f"foreground = yes\npid =\n[zfast]\naccept = 127.0.0.1:{port}\n"
        f"sslVersionMin = TLSv1.3\n{service}"
    )
    process = subprocess.Popen([str(STUNNEL), str(config)], stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 20
        while True:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def test_a_channel_through_tls(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [str(OPENSSL), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    key.chmod(0o600)
    server = ServerSecurity.from_keys(SERVER, [(CLIENT.public, Role.DEVELOPER)])
    with Channel.bind("tcp://127.0.0.1:*", security=server) as rx:
        port = rx.endpoint.rpartition(":")[2]
        inner = f"connect = 127.0.0.1:{port}\ncert = {certificate}\nkey = {key}\n"
        with stunnel(tmp_path, "server", inner) as tls_port:
            outer = (
                f"client = yes\nconnect = 127.0.0.1:{tls_port}\nCAfile = {certificate}\n"
                "verifyPeer = yes\n"
            )
            with stunnel(tmp_path, "client", outer) as near_port:
                near = f"tcp://127.0.0.1:{near_port}"
                with Channel.connect(near, security=ClientSecurity(CLIENT, [SERVER.public])) as tx:
                    tx.send(np.arange(100_000), timeout=30)
                    assert rx.recv(timeout=30).sum() == np.arange(100_000).sum()
                # TLS lets it through, CURVE does not.
                bad = Channel.connect(near, security=ClientSecurity(STRANGER, [SERVER.public]))
                with pytest.raises(HandshakeError, match="refused our key"):
                    bad.send(1, timeout=30)
                bad.abort()
