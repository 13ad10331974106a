"""What a hub's workers are started with, on its own host and on others."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from zfast.runner.policy import Policy
from zfast.runner.remote_protocol import Welcome
from zfast.runner.runtime_folder import RuntimeFolder
from zfast.runner.vitals import LOOKS_PER_LEASE
from zfast.runner.worker_process import WorkerConfig, main_file
from zfast.sharing import exchange


def equip(
    folder: RuntimeFolder, policy: Policy, executor: str, environment: Mapping[str, str]
) -> WorkerConfig:
    """For the hub's own workers; writes the initializer into its folder."""
    initializer = folder.path / "initializer.pickle"
    if policy.initializer is not None:
        initializer.write_bytes(policy.initializer)
    segment_socket = str(folder.path / exchange.FILE_NAME)
    return WorkerConfig(
        endpoint=folder.endpoint,
        runtime_folder=str(folder.path),
        executor=executor,
        environment=dict(environment),
        segment_socket=segment_socket if exchange.is_supported() else None,
        sys_path=[os.path.abspath(entry) for entry in sys.path],
        beat_s=policy.lease_s / LOOKS_PER_LEASE,
        initializer=str(initializer) if policy.initializer is not None else None,
        argv=list(sys.argv),
        main_file=main_file(),
    )


def invite(config: WorkerConfig, policy: Policy, versions: Mapping[str, str]) -> Welcome:
    """For the foremen of other hosts, who start the same there; without a session id."""
    return Welcome(
        session_id=b"",
        versions=dict(versions),
        lease_s=policy.lease_s,
        executor=config.executor,
        environment=dict(config.environment),
        sys_path=list(config.sys_path),
        argv=list(config.argv),
        main_file=config.main_file,
        max_worker_nbytes=policy.max_worker_nbytes,
    )
