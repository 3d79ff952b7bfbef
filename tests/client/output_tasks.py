"""Tasks that write, in every way there is."""

import ctypes
import faulthandler
import logging
import os
import subprocess
import sys
import time
import warnings


def say(text, file="stdout", end="\n"):
    print(text, file=getattr(sys, file), end=end)
    return text


def say_and_fail(text):
    print(text)
    raise ValueError(text)


def say_and_die(text):
    print(text, end="")
    sys.stdout.flush()
    os._exit(3)


def say_and_hang(text):
    print(text)
    time.sleep(60)


def say_in_every_way():
    print("print")
    print("stderr", file=sys.stderr)
    os.write(1, b"os.write\n")
    warnings.warn("a warning", stacklevel=1)
    subprocess.run([sys.executable, "-c", "print('subprocess')"], check=True)
    pid = os.fork()
    if not pid:
        print("forked", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    ctypes.CDLL(None).puts(b"puts")
    faulthandler.dump_traceback()
    sys.stdout.buffer.write(b"buffer\n")
    sys.stdout.flush()


def say_by_c(text):
    print(f"{text} of python")
    ctypes.CDLL(None).puts(f"{text} of c".encode())


def say_many(count, size=0):
    for number in range(count):
        print(f"line {number} ".ljust(size, "."))
    return count


def write(data):
    os.write(1, data)


def replace_descriptor():
    """Put something else in the place of standard output for a moment, and leave a closed one behind."""
    kept = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    print("to nowhere", flush=True)
    os.dup2(kept, 1)
    os.close(kept)
    os.close(null)
    print("here again")


def close_output():
    os.close(1)
    os.close(2)


def leave_a_writer_behind(seconds):
    """Return while a process that this has started still writes."""
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds}); print('the orphan')"])


def hold_the_lock_and_write(size):
    """Write more than a pipe holds without letting go of the interpreter's lock, as f2py and pybind11 do."""
    library = ctypes.PyDLL(None)
    library.write(1, b"x" * size + b"\n", size + 1)


def stdout_as_it_is():
    return sys.stdout.fileno(), sys.stdout.name, sys.stdout.encoding, sys.stdout.buffer.writable()


def log(name, level, text, *args, **extra):
    logging.getLogger(name).log(level, text, *args, extra=extra)


def quiet():
    return None
