"""The processes that a task has started, which die with a worker that is killed.

This module owns which processes belong to a worker: its descendants, as far as they are in its process group. One
that has left the group, as a daemon does, is meant to live on. It must not know why a worker is killed.

Killing the whole group would not do: an embedded farm's workers are in the program's group, for Ctrl-C, and
multiprocessing's resource tracker has to clean up after the dead.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

from farm_executor._record import NamedTuple

__all__ = ["kill_family"]

PS_SECONDS = 2.0
# These end by themselves once nobody needs them, and clean up: multiprocessing's tracker, a program's own server.
_CLEANERS = ("multiprocessing.resource_tracker", "farm_executor.launch.child")


class _Process(NamedTuple):
    pid: int
    group: int
    command: str


def kill_family(pid: int) -> None:
    """Kill a child of ours, and the processes that belong to it.

    From the top down, each is stopped before we look for its children. So it cannot start others meanwhile, nor
    reap one that has ended, whose pid could then become another process's.
    """
    children = _children_by_proc if os.path.exists("/proc/self/task") else _children_by_ps()
    family = [pid]
    with contextlib.suppress(OSError):
        group = os.getpgid(pid)
        os.kill(pid, signal.SIGSTOP)
        for member in family:  # which grows
            for child in children(member):
                if child.group == group and not any(word in child.command for word in _CLEANERS):
                    with contextlib.suppress(OSError):  # it has ended, or is another user's by now
                        os.kill(child.pid, signal.SIGSTOP)
                        family.append(child.pid)
    for member in reversed(family):
        with contextlib.suppress(OSError):
            os.kill(member, signal.SIGKILL)


def _children_by_proc(pid: int) -> Iterable[_Process]:
    for thread in _listing(f"/proc/{pid}/task"):
        for child in map(int, _content(f"/proc/{pid}/task/{thread}/children").split()):
            with contextlib.suppress(OSError):
                command = _content(f"/proc/{child}/cmdline").replace("\0", " ")
                yield _Process(child, os.getpgid(child), command)


def _listing(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _content(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _children_by_ps() -> Callable[[int], Iterable[_Process]]:
    """Return a function that looks up children among the processes that there are now."""
    import subprocess  # late: few servers come here, and a program waits for each to start

    command = ["ps", "-axo", "pid=,ppid=,pgid=,command="]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=PS_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return lambda pid: ()
    found: dict[int, list[_Process]] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        pid, parent, group, *rest = line.split(None, 3)
        found.setdefault(int(parent), []).append(_Process(int(pid), int(group), "".join(rest)))
    return lambda pid: found.get(pid, ())
