"""What the tests of servers run in workers: importable by name in every one."""

import contextlib
import ctypes
import importlib
import itertools
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


def call_in_module(module: str, function: str) -> Any:
    return getattr(importlib.import_module(module), function)()


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


def hold_the_gil(path: str, times: int) -> int:
    """Leave a line behind, and then let no other thread of the worker run: for about a second for 10**8 times."""
    write_line(path, os.getpid())
    return sum(itertools.repeat(1, times))


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


def write_stderr(text: str) -> None:
    """Write there as a library of C's does, past Python."""
    os.write(2, text.encode())


def write_stderr_and_die(text: str, how: str) -> None:
    write_stderr(text)
    die(how)


def die_deep_down(levels: int) -> None:
    if levels:
        die_deep_down(levels - 1)
    die("segfault")


def hold(megabytes: int) -> bytearray:
    """Memory of that size, each page of it used."""
    memory = bytearray(megabytes << 20)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(range(0, len(memory), os.sysconf("SC_PAGE_SIZE")))
    return memory


def hold_and_pass_gate(megabytes: int, address: Address) -> None:
    memory = hold(megabytes)
    pass_gate(address)
    del memory


def sign_and_hold_for_ever(path: str, megabytes: int) -> None:
    write_line(path, os.getpid())
    memory = hold(megabytes)
    threading.Event().wait()
    del memory


kept: list[bytearray] = []


def keep(megabytes: int) -> int:
    """What a leak does: hold it beyond the task."""
    kept.append(hold(megabytes))
    return os.getpid()


def share(megabytes: int) -> int:
    """Use that much memory that is a file's, as shared memory is."""
    import mmap
    import tempfile

    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(megabytes << 20)
        with mmap.mmap(file.fileno(), megabytes << 20) as memory:
            for start in range(0, len(memory), 1 << 20):
                memory[start : start + (1 << 20)] = bytes(1 << 20)
            threading.Event().wait(1.0)
    return os.getpid()


def run_for_ever(path: str, how: str) -> None:
    """Sign, and then do nothing that could notice anything."""
    write_line(path, os.getpid())
    if how == "python":
        while True:
            pass
    elif how == "c":
        ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock, as it is PyDLL
    elif how == "read":
        os.read(os.pipe()[0], 1)
    elif how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)


def fill_page(value: int) -> pickle.PickleBuffer:
    """What a task returns whose memory the next one writes to: it travels as it is then, by itself."""
    page[:] = bytes([value]) * len(page)
    return pickle.PickleBuffer(page)


def fill_page_and_sign(value: int, path: str) -> pickle.PickleBuffer:
    filled = fill_page(value)
    write_line(path, os.getpid())
    return filled


def use_up_descriptors() -> None:
    """From now on this process can open no file."""
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def sign_and_sleep_with_the_lock(path: str, seconds: int) -> int:
    """In C, holding the interpreter's lock: no other thread of the worker runs."""
    write_line(path, os.getpid())
    return int(ctypes.PyDLL(None).sleep(seconds))


def chatter(size):
    """Print so many bytes."""
    for _ in range(size // 1000 + 1):
        print("x" * 999)
    return "done"
