"""How many processors this process may compute with, without torch."""

from __future__ import annotations

import os
from pathlib import Path


def count_threads() -> tuple[int, str] | None:
    """How many threads to compute with, and why; None where the system does not say.

    Two threads on one core share its arithmetic unit and only get in each other's way.
    """
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return max(1, int(asked)), "OMP_NUM_THREADS"
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = {_find_core(processor) for processor in os.sched_getaffinity(0)}
    quota = _read_quota()
    if quota is not None and quota < len(cores):
        return quota, f"the container's share of {len(cores)} cores"
    return len(cores), "physical cores that may be used"


def _find_core(processor: int) -> str:
    """The processors that share a core with this one."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _read_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """How many processors' time a container may use; None for any."""
    try:
        quota, period = map(int, file.read_text().split())
    except (OSError, ValueError):  # no such limit: "max 100000"
        return None
    return max(1, round(quota / period))
