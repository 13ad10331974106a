"""A certified issuer, npm's oidc-provider, and a policy for tokens like Okta's, AWS's and EKS's."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zfast.security.policy import Policy, parse_policy

RULES = """
[[rule]]
issuer = "idp"
claim = "groups"
matches = "prefect-prod-developer"
role = "Developer"
environments = ["prod"]

[[rule]]
issuer = "idp"
claim = ["https://sts.amazonaws.com/", "principal_tags", "team"]
matches = "data"
role = "Runner"
environments = ["prod"]

[[rule]]
issuer = "idp"
claim = ["kubernetes.io", "serviceaccount", "name"]
matches = "worker"
role = "Worker"
environments = ["prod"]

[[rule]]
issuer = "idp"
claim = "sub"
matches = "bound.*"
role = "Viewer"
environments = ["prod"]
"""


def policy_text(issuer: str, *, leeway_s: float = 0.0, extra: str = "") -> str:
    head = f'[[issuer]]\nname = "idp"\nissuer = "{issuer}"\naudience = "zfast://prod"\n'
    return f"{head}leeway_s = {leeway_s}\n{extra}{RULES}"


def policy_for(issuer: str, **options: object) -> Policy:
    return parse_policy(policy_text(issuer, **options))


def install(folder: Path) -> Path:
    """Put oidc-provider into a folder; skips the test where that cannot be."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("the certified issuer, oidc-provider, needs node and npm")
    told = folder / "told"
    if not told.exists():
        told.write_text(_npm_install(folder))
    if why := told.read_text():
        pytest.skip(f"npm cannot install oidc-provider: {why}")
    return folder


def _npm_install(folder: Path) -> str:
    """Why that cannot be, or nothing."""
    try:
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "oidc-provider@9"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return str(error)
    return f"status {done.returncode}: {done.stderr[-200:]}" if done.returncode else ""


def ask(url: str, client: str) -> bytes:
    """A token by client credentials."""
    body = urllib.parse.urlencode({"grant_type": "client_credentials", "scope": "zfast"})
    request = urllib.request.Request(url, body.encode())
    basic = base64.b64encode(f"{client}:test".encode()).decode()
    request.add_header("Authorization", f"Basic {basic}")
    with urllib.request.urlopen(request, timeout=20) as response:
        return str(json.load(response)["access_token"]).encode()


class Provider:
    """A running oidc-provider.

    Args:
        bound_to: The fingerprint of the key that the client "bound" may use alone.
        lasts_s: How long its tokens are good.
        host: The command that runs another one on the host where it is to run.
    """

    def __init__(
        self, folder: Path, bound_to: str = "", lasts_s: int = 300, host: tuple[str, ...] = ()
    ) -> None:
        self._host = host
        script = Path(__file__).parent / "oidc" / "issuer.mjs"
        self._process = subprocess.Popen(
            [*host, "node", str(script)],
            cwd=folder,
            env={**os.environ, "TTL": str(lasts_s), "BOUND_TO": bound_to},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.port = int(self._read("port").split()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise AssertionError("oidc-provider ended")

    def rotate(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read("rotated")

    def token(self, client: str, algorithm: str = "RS256") -> bytes:
        """A new token of one of the issuer's clients."""
        url, name = f"{self.url}/token", f"{client}.{algorithm}"
        if not self._host:
            return ask(url, name)
        code = f"import oidc_issuer as o; print(o.ask({url!r}, {name!r}).decode())"
        done = subprocess.run(
            [*self._host, sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            capture_output=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def providing(folder: Path, bound_to: str = "", lasts_s: int = 300) -> Iterator[Provider]:
    """A provider for a while."""
    provider = Provider(folder, bound_to, lasts_s)
    try:
        yield provider
    finally:
        provider.close()
