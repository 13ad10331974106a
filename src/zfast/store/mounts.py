"""Which file systems are shared between hosts: there, a mapped file may lose its pages."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
#: Another host may remove a file that is open here, and its pages go: touching them is SIGBUS.
SHARED_TYPES = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
        *("glusterfs", "gfs2", "ocfs2", "pvfs2", "orangefs", "fuse.sshfs", "fuse.glusterfs"),
        *("fuse.ceph", "fuse.juicefs", "fuse.s3fs", "fuse.gcsfuse", "virtiofs"),
    }
)


@lru_cache(maxsize=256)
def is_shared_between_hosts(device: int) -> bool:
    """Say whether a device (`st_dev`) is a file system that other hosts may mount too.

    What is not known is taken for local: Linux names its mounts, macOS does not.
    """
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        # "36 35 98:0 /root /mount options … - type source superoptions"
        mount, _, file_system = line.partition(" - ")
        if mount.split(" ")[2] == number:
            return file_system.split(" ")[0] in SHARED_TYPES
    return False
