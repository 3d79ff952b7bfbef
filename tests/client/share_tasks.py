"""Tasks over shared objects."""

import mmap
import os
import pickle
import resource
import tempfile
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


def at(plain, place):
    return plain.data[place]


def ends(plain):
    return plain.data[0], plain.data[-1]


def sum_of_firsts(values):
    one, others, again = values
    assert again is one
    return one.data[0] + others["deep"].data[0] + again.data[0]


def first_of(array):
    return int(array[0])


def shape_of(array):
    return array.shape, bool(array.flags.writeable)


kept = []


def limit_memory(more):
    """Let this process have so many bytes of addresses beyond what it has."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))
    return os.getpid()


def limit_files(size):
    """Let this process write no file, nor make memory, that is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return os.getpid()


def open_all_files():
    """Open as many files as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return os.getpid()


def close_all_files():
    while kept:
        os.close(kept.pop())
    return os.getpid()


def in_a_child(plain):
    """What a process that the task forks finds, and what it can do."""
    child = os.fork()
    if not child:
        os._exit(add_one(plain))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), plain.data[0]


def pid_of(_=None):
    return os.getpid()


def open_descriptors():
    return count(os.getpid())


def fill_folder(but):
    """Leave so many bytes of the file system that temporary files are in."""
    folder = tempfile.gettempdir()
    with open(os.path.join(folder, "filler"), "wb") as file:
        file.write(bytes(free_in_folder() - but))


def free_in_folder():
    found = os.statvfs(tempfile.gettempdir())
    return found.f_bfree * found.f_bsize


def function_memories(*_):
    """Return the memory objects of large functions that this process and its parent hold, by their inodes."""
    return [inodes(NAMES[1], pid) for pid in (os.getpid(), os.getppid())]


def inodes(name, pid):
    """Return the memory objects of that name that a process has open."""
    found = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{descriptor}"
        try:
            if name in os.readlink(path):
                found.add(os.stat(path).st_ino)
        except OSError:
            pass
    return found
