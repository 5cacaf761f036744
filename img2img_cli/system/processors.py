"""The number of processors that this process may use. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path


def count_threads() -> tuple[int, str] | None:
    """Return the number of threads to compute with and the reason, or None if the system does not report it.

    The number counts physical cores: two threads on one core share its arithmetic unit and gain nothing.
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
    """Return the list of processors on the same core as text, which identifies the core."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _read_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Return how many processors a container's CPU quota amounts to, or None without a quota."""
    try:
        quota, period = map(int, file.read_text().split())
    except (OSError, ValueError):  # no such limit: "max 100000"
        return None
    return max(1, round(quota / period))
