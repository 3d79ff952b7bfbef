"""Looks at processes, and waits for what cannot be waited for in any better way than by looking again."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

DEADLINE = 30.0
"""Seconds after which waiting for anything counts as a hang. Never reached by a test that passes."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Look until the condition holds; return what it gave."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{seconds} seconds have passed, and still not: {what}")
        pause.wait(0.005)
    return value


def _state(pid: int) -> str:
    """The letter that the system has for the process's state; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    return _state(pid) not in ("", "Z", "X")


def exists(pid: int) -> bool:
    """Whether there is such a process, if only as a zombie that nobody has reaped."""
    return bool(_state(pid))


def children(pid: int) -> set[int]:
    """The children of a process, zombies included."""
    found: set[int] = set()
    for task in _listing(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found.update(map(int, file.read().split()))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def descriptors(pid: int) -> set[str]:
    """What the process has open."""
    found = set()
    for number in _listing(f"/proc/{pid}/fd"):
        try:
            found.add(f"{number}={os.readlink(f'/proc/{pid}/fd/{number}')}")
        except OSError:
            pass
    return found


def resident_bytes(pid: int) -> int:
    """The memory that the process really uses."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def environment(pid: int) -> bytes:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()


def _listing(path: str) -> Iterator[str]:
    try:
        yield from os.listdir(path)
    except (FileNotFoundError, ProcessLookupError):
        return
