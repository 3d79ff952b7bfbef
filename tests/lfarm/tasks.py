"""Tasks that the servers can import."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from contract.tasks import pass_gate, write_line

state: Any = None


def set_state(value: Any) -> Any:
    global state
    state = value
    return os.getpid()


def get_state() -> Any:
    return state


def die_when_first(path: str) -> str:
    """The first call of all takes its worker along. Each signs the book at that path."""
    write_line(path, os.getpid())
    try:
        Path(f"{path}.first").touch(exist_ok=False)
    except FileExistsError:
        return "done"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives on")


def loop_in_c(gate: str) -> int:
    """Reports itself, and then runs without ever coming back to the interpreter."""
    pass_gate(gate)
    return sum(range(10**18))


def loop(gate: str) -> None:
    pass_gate(gate)
    while True:
        pass


def sleep(gate: str) -> None:
    pass_gate(gate)
    time.sleep(9999)


def fail_on(pid: int) -> int:
    if os.getpid() == pid:
        raise ValueError(f"not in {pid}")
    return os.getpid()


def fail_when(value: int, bad: int) -> int:
    if value == bad:
        raise ValueError(f"{value} is bad")
    return value


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


def map_list(function, values):
    return [function(value) for value in values]


def product(a, b):
    """Of 2 x 2 matrices: associative, and not commutative."""
    return (
        a[0] * b[0] + a[1] * b[2],
        a[0] * b[1] + a[1] * b[3],
        a[2] * b[0] + a[3] * b[2],
        a[2] * b[1] + a[3] * b[3],
    )


_lock = threading.Lock()


def hold_lock(gate):
    with _lock:
        pass_gate(gate)


def try_lock():
    if not _lock.acquire(blocking=False):
        return False
    _lock.release()
    return True
