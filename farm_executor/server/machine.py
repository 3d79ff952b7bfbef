"""What the machine has, and how much of that this process may use: a container has less than its host.

This module owns where the system reports these. It must not know a server.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from farm_executor.wire.cores import usable_cores

__all__ = ["machine", "memory_limit"]

CGROUPS = Path("/sys/fs/cgroup")


def machine() -> tuple[float, list[float], int | None, int | None]:
    """Return CPUs, load averages, and the bytes of memory there are and that are available; None if unknown."""
    memory, available = _host_memory()
    limit, used = _cgroup_memory()
    if limit is not None and (memory is None or limit < memory):
        memory = limit
        free = max(limit - used, 0)
        available = free if available is None else min(available, free)
    return round(usable_cores(cgroups=str(CGROUPS)), 2), _load(), memory, available


def memory_limit() -> int | None:
    """Return how many bytes of memory there are for this process; None if that is unknown."""
    memory, _ = _host_memory()
    limit, _ = _cgroup_memory()
    return min((size for size in (memory, limit) if size is not None), default=None)


def _load() -> list[float]:
    try:
        return [round(load, 2) if math.isfinite(load) else 0.0 for load in os.getloadavg()]
    except OSError:
        return []


def _host_memory() -> tuple[int | None, int | None]:
    try:
        with open("/proc/meminfo", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file.read(400).splitlines() if b":" in line)
        kib = [int(lines[name].split()[0]) for name in (b"MemTotal", b"MemAvailable")]
    except (OSError, KeyError, ValueError, IndexError):
        return None, None
    return kib[0] * 1024, kib[1] * 1024


def _cgroup_memory() -> tuple[int | None, int]:
    """Return the tightest limit of the control groups that this process is in, and how much of it is used."""
    limit, used = None, 0
    for folder in _cgroups():
        try:
            maximum = int((folder / "memory.max").read_text("ascii"))
            current = int((folder / "memory.current").read_text("ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        if limit is None or maximum < limit:
            # What files have cached is given back when it is needed.
            limit, used = maximum, current - int(stat.get("inactive_file", 0))
    return limit, used


def _cgroups() -> Iterator[Path]:
    """Yield the folder of this process's control group, version 2, and those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return
    folder = CGROUPS / path.lstrip("/")
    yield folder
    for parent in folder.parents:
        if CGROUPS in (parent, *parent.parents):
            yield parent
