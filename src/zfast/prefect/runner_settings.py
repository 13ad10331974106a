"""What a task runner was given, turned into what its hub takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import cloudpickle
from prefect.settings import get_current_settings

from zfast.addresses import parse_endpoint
from zfast.errors import ConfigError
from zfast.runner.policy import Policy
from zfast.runner.remote_socket import RemoteEndpoint
from zfast.security.server_security import ServerSecurity


def make_policy(settings: Mapping[str, Any]) -> Policy:
    """The policy of a task runner with these settings, see ``ZfastTaskRunner``.

    Raises:
        ConfigError: One is out of its range, or the initializer cannot be pickled.
    """
    values = dict(settings)
    initializer, initargs = values.pop("initializer"), values.pop("initargs")
    if initializer is not None:
        if not callable(initializer):
            raise ConfigError(f"initializer must be callable, not {initializer!r}")
        try:
            values["initializer"] = cloudpickle.dumps((initializer, initargs))
        except Exception as error:
            raise ConfigError(
                f"the initializer cannot be sent to a worker: {error}",
                hint="keep locks, sockets and open files out of its closure and arguments",
            ) from error
    if values["max_workers"] is None:
        values["max_workers"] = max(_default_max_workers(), values["min_workers"])
    return Policy(**values)


def make_remote(
    endpoint: str | None = None, security: ServerSecurity | None = None, insecure: bool = False
) -> RemoteEndpoint | None:
    """Where workers of other hosts may join; None for nowhere.

    Raises:
        ConfigError: The endpoint is malformed or unprotected, or missing.
    """
    if endpoint is None:
        if security is not None or insecure:
            raise ConfigError("security and insecure are for an endpoint", hint="give endpoint=")
        return None
    parse_endpoint(
        endpoint, insecure=insecure, guarded=security is not None, between_processes=True
    )
    return RemoteEndpoint(endpoint, security, insecure)


def _default_max_workers() -> int:
    configured = get_current_settings().tasks.runner.process_pool_max_workers
    return configured or os.cpu_count() or 1
