"""The memory of workers: how much they hold, their peak, and whether the system has killed for lack of it.

This module owns where the system reports these. It must not know workers, only process ids, nor kill any process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import resource

__all__ = ["OomCounter", "held_by", "peak_of", "private_bytes", "read_small"]

PS_SECONDS = 2.0
STATM = "/proc/self/statm"


def peak_of(usage: resource.struct_rusage) -> int:
    """Return the most bytes that a process, or one that it has waited for, had resident at a time."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_by(pids: Iterable[int]) -> dict[int, int]:
    """Return how many bytes the death of each process would free.

    On Linux that is resident memory that is neither a file's nor shared: what `multiprocessing.shared_memory` or
    a mapped file holds outlives the process. Pages that a worker still shares with its supervisor since it was
    forked are counted: some ten MiB. Elsewhere it is all resident memory, as `ps` has it.

    Returns:
        The bytes of each process. Those that have ended are missing.
    """
    if os.path.exists(STATM):
        return {pid: held for pid in pids if (held := private_bytes(pid)) is not None}
    return _resident_by_ps(pids)


def private_bytes(pid: int) -> int | None:
    """Return what `held_by` has of one process, from a file; None where the system has no such file."""
    try:
        _, resident, shared, *_ = map(int, read_small(f"/proc/{pid}/statm").split())
    except (OSError, ValueError):  # it has ended; a zombie has an empty file
        return None
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def read_small(path: str) -> bytes:
    """Return the first 1,024 bytes of a file, at half the cost of a file object: servers look at many."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1024)
    finally:
        os.close(descriptor)


def _resident_by_ps(pids: Iterable[int]) -> dict[int, int]:
    import subprocess  # late: few servers come here, and a program waits for each to start

    command = ["ps", "-o", "pid=,rss=", "-p", ",".join(map(str, pids))]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=PS_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = [line.split() for line in done.stdout.splitlines()]
    return {int(pid): int(kib) * 1024 for pid, kib in lines}


class OomCounter:
    """The count of processes that Linux has killed for lack of memory, in our control group or else on the machine.

    Args:
        proc: The folder of the system's own files.
        cgroups: The folder of the control groups.
    """

    def __init__(
        self, proc: str | os.PathLike[str] = "/proc", cgroups: str | os.PathLike[str] = "/sys/fs/cgroup"
    ) -> None:
        self._paths = [*_paths_of_group(proc, cgroups), os.path.join(proc, "vmstat")]

    def read(self) -> int | None:
        """Return the present count; None if it cannot be known."""
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
                for line in file:
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1])
        return None


def _paths_of_group(proc: str | os.PathLike[str], cgroups: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the paths that the group's files may have: in a container its path may be the host's."""
    try:
        with open(os.path.join(proc, "self", "cgroup")) as file:
            groups = file.read().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            root, name = os.fspath(cgroups), "memory.events"
        elif "memory" in controllers.split(","):
            root, name = os.path.join(cgroups, "memory"), "memory.oom_control"
        else:
            continue
        yield os.path.join(root, path.lstrip("/"), name)
        # Then the container's own files are at the root of the mounted tree.
        yield os.path.join(root, name)
