"""Secrets that came in environment variables: taken out, held here, and handed to no child."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

#: Variables whose value is a secret.
SECRET_VARIABLES = ("ZFAST_SERVER_SECRET_KEY", "ZFAST_CLIENT_SECRET_KEY", "ZFAST_TOKEN")


class HeldSecret:
    """A secret that repr, str and pickle do not show."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The secret."""
        return self._value

    def __repr__(self) -> str:
        return "<HeldSecret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret does not leave its process by pickle")


_lock = threading.Lock()
_taken: dict[str, HeldSecret] = {}


def take_secrets() -> None:
    """Move secrets from the environment into this process, so that no child inherits them.

    ``/proc/PID/environ`` still shows what the process was started with to its own user: a file is
    safer.
    """
    with _lock:
        for name in SECRET_VARIABLES:
            value = os.environ.pop(name, None)
            if value:
                _taken[name] = HeldSecret(value)


def taken_secret(name: str) -> HeldSecret | None:
    """A secret that the environment held."""
    with _lock:
        return _taken.get(name)


def environment_for_children() -> dict[str, str]:
    """This process's environment, but for secrets. Threads: any, also while others change it."""
    found = ((name, os.environ.get(name)) for name in os.environ if name not in SECRET_VARIABLES)
    return {name: value for name, value in found if value is not None}
