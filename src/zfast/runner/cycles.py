"""Reference cycles in a worker: found soon after large jobs, and cheaply.

Task engines leave cycles behind, and large values in them, which would pin memory that others
wait for until the collector came by. So it is called after each large job. What would make that
slow, some 150,000 objects of modules and clients that live as long as the worker, is taken out
of its sight: 0.2 s become 0.2 ms.
"""

from __future__ import annotations

import gc

#: After a job that was given, or returned, so much shared memory, cycles are collected.
LARGE_NBYTES = 1 << 20
#: What is in a cycle when it is taken out of sight stays for ever: not to be done without end.
MAX_FREEZES = 16

_freezes_left = MAX_FREEZES


def modules_loaded() -> None:
    """Take what lives as long as the worker out of the collector's sight.

    To be called when something large may have been imported and no value of a job is alive. It
    does nothing once there was a large job, of which a value may still be somewhere in a cycle.
    """
    global _freezes_left
    if _freezes_left:
        _freezes_left -= 1
        gc.collect()
        gc.freeze()


def job_done(shared_nbytes: int) -> None:
    """Collect cycles, if the job was large.

    Args:
        shared_nbytes: Shared memory that the job was given and returned.
    """
    global _freezes_left
    if shared_nbytes >= LARGE_NBYTES:
        _freezes_left = 0
        gc.collect()
