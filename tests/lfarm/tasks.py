"""Tasks that the servers can import."""

import os
import signal
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
