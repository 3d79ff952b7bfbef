"""What tasks do in the tests of rings."""

import itertools
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

from farm_executor.wire.ring import Ring

opened = []


def echo(value):
    return value


def change(value):
    value[0] ^= 1
    value += b"more"
    return bytes(value)


def is_private(value):
    """Whether what is written to an argument stays there: it is not the memory that the next one comes through."""
    before = bytes(value[:100])
    value[:100] = bytes(100)
    return before


def make(size, byte):
    return bytes([byte]) * size


def die_once(path, value):
    """Kill this worker when it has something large, but only the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return value
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("this worker is dead")


def fork_and_die(path, value):
    """The same, but a process that this has forked goes on, with all of its descriptors."""
    if not os.path.exists(path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    return die_once(path, value)


def sum_in_a_child(value):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(sum, (value[:1000],))


def pid(_):
    return os.getpid()


def fill_descriptors():
    """Open as many files as this process may, and keep them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return os.getpid()


def interrupted_amid_a_copy(size):
    """Yield large data, with Ctrl-C just when its first piece is in the ring."""
    put = Ring.put

    def struck(self, source, lane=None):
        copied = put(self, source, lane)
        Ring.put = put
        signal.raise_signal(signal.SIGINT)
        return copied

    Ring.put = struck
    yield os.urandom(size)
    yield b"never"


def mapped():
    """Whether this process has a ring."""
    with open("/proc/self/maps") as maps:
        return "farm-ring" in maps.read()


def make_once_told(folder, size):
    """Return large data once there is a file "go"; write "begun", and "waits" when there is no room for it."""
    folder = Path(folder)
    note(folder / "begun")
    tell_of_waiting(folder / "waits")
    while not (folder / "go").exists():
        time.sleep(0.005)
    return b"." * size


def tell_of_waiting(path):
    """Write a file when this worker begins to wait for room in its ring."""
    wait = Ring._wait

    def told(self, lane):
        note(path)
        wait(self, lane)

    Ring._wait = told


def make_and_tell(path, size):
    tell_of_waiting(Path(path))
    return b"." * size


def note(path):
    """Write this process's number to a file, which is there only once it is whole."""
    new = path.with_suffix(".new")
    new.write_text(str(os.getpid()))
    new.rename(path)


def make_in_step(folder, size):
    """Return large data, each piece of which leaves only once there is a file of its number."""
    Ring.put = in_step(Ring.put, folder)
    return b"." * size


def take_in_step(folder):
    """Have each piece of what comes taken only once there is a file of its number."""
    Ring.take = in_step(Ring.take, folder)


def in_step(deed, folder):
    pieces = itertools.count()

    def held(*arguments):
        path = Path(folder, str(next(pieces)))
        while not path.exists():
            time.sleep(0.002)
        return deed(*arguments)

    return held
