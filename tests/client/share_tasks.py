"""Tasks over shared objects."""

import mmap
import os
import pickle
import time

NAMES = ("farm-shared", "farm-function")


class Plain:
    """An object with a buffer that can be mapped, without numpy."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Plain, (pickle.PickleBuffer(self.data),)


def first(plain, number=0):
    return plain.data[0] + number


def add_one(plain):
    memory = memoryview(plain.data).cast("B")
    memory[0] += 1
    return memory[0]


def identity_of(value):
    return os.getpid(), id(value)


def kinds(value):
    return type(value).__name__


def total(plain, number):
    return sum(memoryview(plain.data).cast("B")[:: mmap.PAGESIZE]) + number


def die_once(plain, path):
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(3)
    return first(plain)


def meet(folder, number, of, value):
    """Return the process, once that many tasks run at the same time."""
    open(os.path.join(folder, str(number)), "w").close()
    while len(os.listdir(folder)) < of:
        time.sleep(0.001)
    return os.getpid(), value.data[0]


def close_descriptors(value):
    """Return how many descriptors of shared objects this process and its parent have."""
    return [count(os.getpid()), count(os.getppid())]


def count(pid):
    """Return how many descriptors of shared objects a process has."""
    found = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            found += NAMES[0] in os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            pass
    return found


def supervisor():
    return os.getppid()
