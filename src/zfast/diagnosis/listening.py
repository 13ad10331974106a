"""Open tcp ports of this user's zfast processes, and who may reach them."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from zfast.diagnosis.finding import Finding, Level
from zfast.diagnosis.stranger import announced_mechanism, check_endpoint
from zfast.security.curve_keys import PublicKey

_CHECK = "ports"
#: A process that has this mapped can open zfast's endpoints.
_MARK = "/zfast/_core."


def check_listening(servers: Iterable[PublicKey], *, takes_tokens: bool) -> Iterator[Finding]:
    """Greet every port that a zfast process of this user listens on. Linux."""
    if sys.platform != "linux":
        yield Finding(
            _CHECK, Level.NOTE, "open ports are looked for on Linux only",
            hint="name endpoints: zfast doctor tcp://HOST:PORT",
        )  # fmt: skip
        return
    keys = tuple(servers)
    found = False
    for pid, host, port in listening_ports():
        shown = f"[{host}]" if ":" in host else host
        url = f"tcp://{shown}:{port}"
        reachable = ipaddress.ip_address(host)
        to = host
        if reachable.is_unspecified:
            to = "::1" if ":" in host else "127.0.0.1"
        try:
            mechanism = announced_mechanism(to, port)
        except OSError:
            continue  # closed meanwhile
        if mechanism is None:
            continue  # a page for people, or a database: none of ours
        found = True
        who = "this host alone" if reachable.is_loopback else "other hosts"
        if mechanism == "NULL" and reachable.is_loopback:
            yield Finding(
                _CHECK,
                Level.NOTE,
                f"process {pid} listens on {url} without keys (insecure=True): every user of this "
                "host can speak to it",
                hint="use ipc, or security=ServerSecurity.load()",
            )
            continue
        shown_to = f"tcp://{f'[{to}]' if ':' in to else to}:{port}"
        for finding in check_endpoint(shown_to, keys, takes_tokens=takes_tokens):
            message = f"process {pid} listens on {url}, for {who}: {finding.message}"
            yield Finding(_CHECK, finding.level, message, finding.hint)
    if not found:
        yield Finding(_CHECK, Level.OK, "no zfast process of this user listens on tcp")


def listening_ports() -> list[tuple[int, str, int]]:
    """Process, address and port of each, without our own."""
    found = set()
    for connection in psutil.net_connections(kind="tcp"):
        address, pid = connection.laddr, connection.pid
        # Without a process: another user's.
        if connection.status != psutil.CONN_LISTEN or pid is None or not address:
            continue
        if pid != os.getpid() and _is_ours(pid):
            found.add((pid, address.ip, address.port))
    return sorted(found)


def _is_ours(pid: int) -> bool:
    """Whether it is a process of this user's that has zfast's core in it."""
    try:
        is_this_users = Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
        return is_this_users and _MARK in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
