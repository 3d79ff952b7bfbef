"""Tasks that look at the worker's process as programs do that were written for children of multiprocessing."""

import _thread
import atexit
import logging
import multiprocessing
import multiprocessing.shared_memory
import multiprocessing.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref


class Thing:
    """Something that a weak reference can lead to."""


def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


def leave_things_for_the_end(path):
    """Everything by which a program has something done when its process ends."""
    note.kept = Thing()
    atexit.register(note, path, "atexit")
    multiprocessing.util.Finalize(None, note, args=(path, "Finalize"), exitpriority=1)
    weakref.finalize(note.kept, note, path, "weakref.finalize")
    main = threading.current_thread()
    threading.Thread(target=lambda: (main.join(), note(path, "a thread"))).start()
    return os.getpid()


def leave_processes():
    """A daemonic process and a manager, which end with the process that has started them."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    leave_processes.manager = context.Manager()
    return [process.pid, leave_processes.manager._process.pid]


def identity():
    process, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return {
        "number": process._identity,
        "name": process.name,
        "daemon": process.daemon,
        "is the process": process.pid == os.getpid() and process.is_alive(),
        "parent": (parent.name, parent.pid, parent.is_alive()),
        "children": multiprocessing.active_children(),
    }


def numbers_of_children():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return [*multiprocessing.current_process()._identity], [*pool.apply(identity)["number"]]


def start_method():
    return multiprocessing.get_start_method()


def ask_manager(proxy):
    return proxy.get("key")


def imported_as_usual():
    """Modules that were completed look as if they had not been, also if somebody has looked for them before."""
    import importlib.util

    for name in ("process", "context", "resource_tracker"):
        importlib.util.find_spec(f"multiprocessing.{name}")
    import inspect
    import multiprocessing.context
    import multiprocessing.process
    import multiprocessing.resource_tracker as tracker

    modules = (multiprocessing.process, multiprocessing.context, tracker)
    loaders = [module.__spec__.loader is module.__loader__ for module in modules]
    return loaders, [type(module.__loader__).__name__ for module in modules], len(inspect.getsource(tracker)) > 1000


def interrupt_oneself(how):
    try:
        if how == "a signal":
            signal.raise_signal(signal.SIGINT)
        else:
            _thread.interrupt_main()
        time.sleep(20)
    except KeyboardInterrupt:
        return "interrupted"
    return "not interrupted"


def interrupted_child():
    """What becomes of a program that a task starts, and sends the signal that stops many politely."""
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def interrupted_fork():
    """How a child ends that a task has forked, interrupted twice."""
    pid = os.fork()
    if pid == 0:
        for code in (1, 0):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                continue
            os._exit(code + 1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def surroundings():
    return {
        "root handlers": logging.getLogger().handlers,
        "stdin": sys.stdin.read(),
        "main thread": threading.current_thread() is threading.main_thread(),
        "native id": threading.main_thread().native_id == threading.get_native_id(),
        "SIGTERM": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "SIGCHLD": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }


def draw(gate):
    """A random number, when everybody is here."""
    note(gate, "x")
    while os.path.getsize(gate) < 4:
        time.sleep(0.005)
    return os.getpid(), random.random()


def add_one(name):
    segment = multiprocessing.shared_memory.SharedMemory(name=name)
    segment.buf[0] += 1
    value = segment.buf[0]
    segment.close()
    return value
