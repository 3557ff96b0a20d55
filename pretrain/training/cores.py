"""How many cores this process may use, and how many data workers that makes. Free of torch."""

from __future__ import annotations

import math
import os
from pathlib import Path

from pretrain.training.control_groups import group_folders
from pretrain.training.processes import processes
from pretrain.training.shortage import free_shared_memory

MOST_WORKERS = 32
"""Data workers of a process, unless a number is given: more decode than any card takes."""
_FEW_WORKERS = 2
_LITTLE_SHARED_MEMORY = 1 << 30
"""Bytes of shared memory below which batches of many workers may not fit: a container has 64 MB."""
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Returns the cores that the system lets this process use, by its affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(_CGROUPS)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(root: Path) -> float | None:
    """Returns the cores' worth of time that a control group (version 2 or 1) allows; None where there is no limit.

    Args:
        root: where control groups are mounted; in a container its own group's files lie there.
    """
    found = []
    for controller, files in (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):
        for group in group_folders(root / controller, controller):
            try:
                words = " ".join((group / name).read_text(encoding="ascii") for name in files).split()
                quota, period = float(words[0]), float(words[1])
            except (OSError, ValueError, IndexError):  # not there, or "max"
                continue
            if quota > 0 and period > 0:
                found.append(quota / period)
    return min(found, default=None)


def auto_workers() -> int:
    """Returns the data workers of this process, at least 1: its share of the cores but one, which feeds the model."""
    found = max(1, min(usable_cores() // _local_world_size() - 1, MOST_WORKERS))
    free = free_shared_memory()
    return min(found, _FEW_WORKERS) if free is not None and free < _LITTLE_SHARED_MEMORY else found


def workers_alone(workers: int) -> int:
    """Returns the data workers of a process while the others of its machine wait for it: theirs too, as cores allow.

    Args:
        workers: of each process.
    """
    return max(workers, min(workers * _local_world_size(), usable_cores() - 1))


def threads_alone(threads: int) -> int:
    """Returns the threads of a process while the others of its machine wait for it: all cores; alone, its own.

    Args:
        threads: of each process.
    """
    return threads if _local_world_size() == 1 else max(threads, usable_cores())


def _local_world_size() -> int:
    try:
        return processes().local_world_size
    except ValueError:  # told where the processes are started
        return 1
