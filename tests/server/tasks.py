"""What the tests of servers run in workers: importable by name in every one."""

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from contract.gate import Address
from contract.tasks import pass_gate, write_line

state: Any = "never set"
page = bytearray(1 << 20)


def pid() -> int:
    return os.getpid()


def set_state(value: Any) -> int:
    global state
    state = value
    return os.getpid()


def get_state() -> Any:
    return state


def sign(path: str, value: Any = None) -> Any:
    """Leave a line behind: a side effect that can be counted."""
    write_line(path, os.getpid())
    return value


def sign_and_pass_gate(path: str, address: Address) -> int:
    write_line(path, os.getpid())
    pass_gate(address)
    return os.getpid()


def sign_and_die(path: str, how: str) -> None:
    write_line(path, os.getpid())
    die(how)


def sign_pass_gate_and_die(path: str, address: Address, how: str) -> None:
    write_line(path, os.getpid())
    pass_gate(address)
    die(how)


def die_the_first_time(path: str, how: str) -> int:
    """Dies unless somebody has before."""
    first = not Path(path).exists()
    write_line(path, os.getpid())
    if first:
        die(how)
    return os.getpid()


def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "abort":
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)
        threading.Event().wait()


def want_too_much_memory(room: int, wanted: int) -> int:
    """Ask for more memory than this process may have from now on."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
    try:
        return len(bytearray(wanted))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def leave_a_child_and_die(path: str, address: Address) -> None:
    """Die, when a forked child that has everything open which this process has is at the gate."""
    write_line(path, os.getpid())
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            pass_gate(address)
        os._exit(0)
    os._exit(3)


def open_descriptors() -> dict[int, str]:
    found = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def read_standard_input() -> tuple[bytes, bytes]:
    """What this process reads there, and what a child of it does."""
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, timeout=30)
    return os.read(0, 100), child.stdout


def raise_unpicklable() -> None:
    error = ValueError("it says what was wrong")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def own_environment() -> dict[str, str]:
    return dict(os.environ)


def ignore_everything_and_pass_gate(address: Address) -> None:
    """A task that holds on whatever happens, short of SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pass_gate(address)


def fill_page(value: int) -> pickle.PickleBuffer:
    """What a task returns whose memory the next one writes to: it travels as it is then, by itself."""
    page[:] = bytes([value]) * len(page)
    return pickle.PickleBuffer(page)


def use_up_descriptors() -> None:
    """From now on this process can open no file."""
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def sign_and_sleep_with_the_lock(path: str, seconds: int) -> int:
    """In C, holding the interpreter's lock: no other thread of the worker runs."""
    write_line(path, os.getpid())
    return int(ctypes.PyDLL(None).sleep(seconds))
