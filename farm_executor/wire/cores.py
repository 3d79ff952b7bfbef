"""How many cores this process may use at once.

This module owns what the system says about it: the affinity mask, and the quota of the control group, by which a
container gets half a core or two. It must not know what the number is for.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator

__all__ = ["usable_cores"]


def usable_cores(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> float:
    """Return the number of cores, which a quota may make a fraction.

    Args:
        proc: The folder of the processes.
        cgroups: The folder of the control groups.
    """
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_quotas(proc, cgroups)])


def _quotas(proc: str, cgroups: str) -> Iterator[float]:
    """Yield the quota of each group that the process is in, in cores, where there is one."""
    for folder in _groups(proc, cgroups):
        quota = _words(folder, "cpu.max") or (
            _words(folder, "cpu.cfs_quota_us") + _words(folder, "cpu.cfs_period_us")  # version 1
        )
        with contextlib.suppress(ValueError):  # none of those files, "max", or what a later system says
            amount, period = map(int, quota)
            if amount > 0 and period > 0:  # -1 is no quota
                yield amount / period


def _groups(proc: str, cgroups: str) -> Iterator[str]:
    """Yield the folders of the groups that may limit the process's time, its own first."""
    try:
        with open(os.path.join(proc, "self", "cgroup"), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError):  # not Linux, or a name that is not text
        return
    for line in lines:
        _, _, found = line.partition(":")
        controllers, _, path = found.partition(":")
        if not controllers:
            root = cgroups
        elif "cpu" in controllers.split(","):
            root = os.path.join(cgroups, "cpu")
        else:
            continue
        # In a container the path may be the host's, of which only the root is mounted.
        parts = posixpath.normpath("/" + path.strip("/")).strip("/").split("/")
        for count in range(len(parts), -1, -1):
            yield os.path.join(root, *parts[:count])


def _words(folder: str, name: str) -> list[str]:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read().split()
    except (OSError, ValueError):  # there is none, or it is not text
        return []
